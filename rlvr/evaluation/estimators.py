"""Estimators over the outcomes of n samples per prompt."""

import math
from collections.abc import Sequence

import numpy as np


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    arXiv 2107.03374. Raises ValueError unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right in {num_samples} samples is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def bootstrap_interval(
    values: Sequence[float], *, num_resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (one per prompt), resampling prompts with replacement.

    Deterministic in `seed`. Raises ValueError when there is no value.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    sample = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(sample), size=(num_resamples, len(sample)))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(sample[picks].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)
