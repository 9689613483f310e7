"""Scalar reference of what compares a base with a tuned model: exact fractions, sets and enumeration, no arrays."""

import math
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product


def pass_at_k_exact(num_samples: int, num_correct: int, k: int) -> Fraction:
    """One minus the share of the k-subsets that hold no right sample."""
    return 1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k))


def majority_by_enumeration(answers: Sequence[str], outcomes: Sequence[int], k: int) -> Fraction:
    """The mean over all k-subsets of the mean, over the answers that tie for most votes, of the share that is right.

    An empty answer has no vote; a subset of empty answers is wrong.
    """
    total, subsets = Fraction(0), 0
    for subset in combinations(range(len(answers)), k):
        subsets += 1
        votes: dict[str, int] = {}
        for index in subset:
            if answers[index] != "":
                votes[answers[index]] = votes.get(answers[index], 0) + 1
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        for winner in winners:
            verdicts = [outcome for answer, outcome in zip(answers, outcomes, strict=True) if answer == winner]
            total += Fraction(sum(verdicts), len(verdicts)) / len(winners)
    return total / subsets


def support(base: set[int], tuned: set[int], problems: set[int]) -> dict[str, Fraction | None]:
    """Counts and ratios of "The Invisible Leash" (arXiv 2507.14843) from the sets of solved problems.

    None where the definition divides by zero. SDS is the harmonic mean of SRR and NDR.
    """
    preserved, shrunk, expanded = len(base & tuned), len(base - tuned), len(tuned - base)
    srr = Fraction(preserved, len(base)) if base else None
    ndr = Fraction(expanded, len(tuned)) if tuned else None
    sds = 2 / (1 / srr + 1 / ndr) if srr and ndr else None
    nscr = Fraction(expanded - shrunk, len(base | tuned)) if base | tuned else None
    counts = {"preserved": preserved, "shrunk": shrunk, "expanded": expanded}
    return {
        **{name: Fraction(count) for name, count in counts.items()},
        "unsolved": Fraction(len(problems - base - tuned)),
        "srr": srr,
        "ndr": ndr,
        "sds": sds,
        "nscr": nscr,
    }


def answer_entropy(answers: Sequence[str]) -> float:
    """-sum p log p over the distinct answers, of which a missing one is one."""
    total = 0.0
    for answer in set(answers):
        p = sum(each == answer for each in answers) / len(answers)
        total -= p * math.log(p)
    return total


def cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> list[float]:
    """The means of all equally likely draws of as many clusters as there are, sorted: for few clusters only."""
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    means = []
    for drawn in product(members.values(), repeat=len(members)):
        everything = [value for each in drawn for value in each]
        means.append(math.fsum(everything) / len(everything))
    return sorted(means)


def sign_flip_p_value(sums: Sequence[Fraction | int]) -> Fraction:
    """The share of all ways of giving each sum one of both signs whose total is as far from 0 as that observed."""
    observed = abs(sum(sums))
    flipped = [
        abs(sum(s * each for s, each in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))
    ]
    return Fraction(sum(each >= observed for each in flipped), len(flipped))


def crossing(curve: Mapping[int, Fraction]) -> float | None:
    """Where tuned minus base goes from above to below 0 for the last time, linear in log k between two k.

    0 where the last that is not 0 is below and none is above, infinity where the last is above, None where all are 0.
    """
    points = [(k, value) for k, value in sorted(curve.items()) if value != 0]
    if not points:
        return None
    if points[-1][1] > 0:
        return math.inf
    place = len(points) - 1
    while place >= 0 and points[place][1] < 0:
        place -= 1
    if place < 0:
        return 0.0
    (k, above), (next_k, below) = points[place], points[place + 1]
    share = float(above / (above - below))
    return math.exp(math.log(k) + share * (math.log(next_k) - math.log(k)))


def shared_ngrams(prompt: Sequence[str], others: Sequence[Sequence[str]], n: int) -> tuple[int, int]:
    """How many of the n-grams of a prompt are in one of the others, and how many it has; by comparison of slices."""
    mine = [list(prompt[start : start + n]) for start in range(len(prompt) - n + 1)]
    found = 0
    for gram in mine:
        found += any(list(other[s : s + n]) == gram for other in others for s in range(len(other) - n + 1))
    return found, len(mine)
