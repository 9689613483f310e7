"""How varied a model is: over the answers it ends with, and over the tokens it writes."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from rlvr.evaluation.estimators import Estimate, estimate


def answer_entropy(answers: Sequence[str]) -> float:
    """-sum p log p, in nats, over the distinct answers of one prompt's samples; empty answers are one of them.

    It runs from 0, when all are alike, to log n. Of few samples it is too low, by about (distinct - 1) / 2n, so that it
    is only to be compared between equal numbers of samples. Raises ValueError when there is no sample.
    """
    if not answers:
        raise ValueError("the entropy of no answers is not defined")
    shares = [count / len(answers) for count in Counter(answers).values()]
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))


def mean_answer_entropy(
    answers: Sequence[Sequence[str]], *, seed: int, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The mean over prompts of `answer_entropy`, in nats, with its interval."""
    return estimate([answer_entropy(each) for each in answers], seed=seed, clusters=clusters)


def mean_token_entropy(
    entropies: Sequence[Sequence[float | None]],
    lengths: Sequence[Sequence[int]],
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> Estimate | None:
    """The mean over all tokens of the full-vocabulary entropy, in nats, with its interval over prompts.

    `entropies` are means over the tokens of each sample of each prompt and `lengths` their numbers of tokens, so that
    long samples weigh more. Samples whose entropy was not kept (None) and empty ones are left out; None where nothing
    is left.
    """
    values, weights, units = [], [], []
    for index, (means, counts) in enumerate(zip(entropies, lengths, strict=True)):
        kept = [(mean, count) for mean, count in zip(means, counts, strict=True) if mean is not None and count > 0]
        if kept:
            weights.append(float(sum(count for _, count in kept)))
            values.append(math.fsum(mean * count for mean, count in kept) / weights[-1])
            units.append(index if clusters is None else clusters[index])
    return estimate(values, seed=seed, clusters=units, weights=weights) if values else None
