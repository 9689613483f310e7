"""Scalar reference of the evaluation's estimators, by enumeration rather than by their closed forms."""

import math


def pass_at_k_by_enumeration(num_samples: int, num_correct: int, k: int) -> float:
    """Share of the k-subsets of the samples that hold a correct one; samples 0..num_correct-1 are the correct ones.

    Visits all 2^num_samples subsets: for small numbers only.
    """
    subsets, solved = 0, 0
    for subset in range(2**num_samples):
        if subset.bit_count() != k:
            continue
        subsets += 1
        if any(subset >> sample & 1 for sample in range(num_correct)):
            solved += 1
    return solved / subsets


def pass_at_k_by_draws(num_samples: int, num_correct: int, k: int) -> float:
    """1 - P(k draws without replacement are all wrong), one draw after the other."""
    all_wrong = 1.0
    for draw in range(k):
        wrong_left = num_samples - num_correct - draw
        all_wrong *= max(wrong_left, 0) / (num_samples - draw)
    return 1.0 - all_wrong


def bootstrap_means(values: list[float]) -> list[float]:
    """The means of all n^n equally likely resamples of n values, sorted: for small n only."""
    totals = [0.0]
    for _ in values:
        totals = [total + value for total in totals for value in values]
    return sorted(total / len(values) for total in totals)


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value with at least `share` of the sorted values at or below it."""
    position = math.ceil(share * len(ordered)) - 1
    return ordered[min(max(position, 0), len(ordered) - 1)]
