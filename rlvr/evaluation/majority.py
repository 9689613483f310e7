"""maj@k: how often the most frequent answer of k samples is right."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.estimators import Floats


def majority_at_k(answers: Sequence[str], outcomes: Sequence[float], k: int) -> float:
    """The probability that the majority answer of k of a prompt's n samples, drawn without replacement, is right.

    The exact mean over all k-subsets, so that it is unbiased for k samples as `pass_at_k` is. Samples with equal answer
    text vote together. An empty answer has no vote, and a subset without any answer is wrong. At a tie each of the
    answers ahead is chosen equally often. Where samples with one answer text have unlike outcomes, as when only some
    keep to the format, the answer counts as right by the share of them that are.

    The work grows as n k^2 per prompt, and prompts whose answers are equally frequent are worked out once. Raises
    EvaluationError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(answers):
        raise EvaluationError(
            f"maj@{k} cannot be estimated from {len(answers)} samples per prompt; give k from 1 to {len(answers)}."
        )
    verdicts: dict[str, list[float]] = {}
    for answer, outcome in zip(answers, outcomes, strict=True):
        if answer:
            verdicts.setdefault(answer, []).append(float(outcome == 1.0))
    if not verdicts:
        return 0.0
    counts = tuple(sorted(len(each) for each in verdicts.values()))
    winning = _winning(counts, len(answers) - sum(counts), k)
    right = sum(sum(each) / len(each) * winning[len(each)] for each in verdicts.values() if any(each))
    return min(right, 1.0)


@lru_cache(maxsize=4096)
def _winning(counts: tuple[int, ...], num_empty: int, k: int) -> dict[int, float]:
    """By count, the probability that one answer with this count wins among `counts`."""
    if k == sum(counts) + num_empty:
        return {counts[-1]: 1.0 / counts.count(counts[-1])} | {each: 0.0 for each in counts if each < counts[-1]}
    found = {}
    for count in set(counts):
        rivals = list(counts)
        rivals.remove(count)
        found[count] = _win(count, rivals, num_empty, k)
    return found


def _win(count: int, rivals: Sequence[int], num_empty: int, k: int) -> float:
    """The probability that an answer of `count` samples wins against `rivals` in a k-subset.

    Counts subsets by generating functions: with t votes for the answer, a rival of m samples contributes
    sum_{s < t} C(m, s) x^s + y C(m, t) x^t, and empty answers (1 + x)^num_empty. The coefficient of x^(k - t) is a
    polynomial in y whose power says how many rivals tie. Its integral over y from 0 to 1 turns r ties into the share
    1 / (r + 1), and Gauss-Legendre quadrature with enough nodes is exact.
    """
    num_samples = count + sum(rivals) + num_empty
    odds = k / (num_samples - k)  # with x in these odds the coefficients of x^k are the largest: none that counts is 0
    votes, nodes, weights = [], [], []
    for t in range(1, min(count, k) + 1):
        ties = (k - t) // t  # at most
        y, w = np.polynomial.legendre.leggauss(ties // 2 + 1)
        votes += [t] * len(y)
        nodes += list((y + 1) / 2)
        weights += list(w / 2)
    # One row per pair of t and y, and a last one without any limit, which counts all subsets.
    limit, node = np.array([*votes, k + 1])[:, None], np.array([*nodes, 1.0])[:, None]
    ways = np.zeros((len(limit), k + 1))
    ways[:, 0] = 1.0
    for size in rivals:
        votes_of_rival = np.arange(min(size, k) + 1)
        terms = np.where(votes_of_rival < limit, 1.0, np.where(votes_of_rival == limit, node, 0.0))
        ways = _times(ways, terms * _binomials(size, k, odds))
    empty, own = _binomials(num_empty, k, odds), _binomials(count, k, odds)
    ways = _times(ways, np.broadcast_to(empty, (len(limit), len(empty))))
    won = sum(weight * own[t] * ways[row, k - t] for row, (t, weight) in enumerate(zip(votes, weights, strict=True)))
    everything = float(own @ ways[-1, k - np.arange(len(own))])
    return float(won) / everything


def _times(ways: Floats, terms: Floats) -> Floats:
    """Products [rows, k + 1] of polynomials in x, divided by one number common to all rows, so that none overflows."""
    product = np.zeros_like(ways)
    for power in range(terms.shape[1]):
        product[:, power:] += ways[:, : ways.shape[1] - power] * terms[:, power, None]
    return product / product.max()


def _binomials(size: int, k: int, odds: float) -> Floats:
    """C(size, s) odds^s for s from 0 to the lesser of size and k, divided by the largest."""
    powers = np.arange(1, min(size, k) + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((size - powers + 1) * odds / powers))])
    scaled: Floats = np.exp(logs - logs.max())
    return scaled
