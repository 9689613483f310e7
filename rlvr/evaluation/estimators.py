"""Estimators over the outcomes of n samples per prompt, and bootstrap intervals over prompts."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvr.errors import EvaluationError

NUM_RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 4_000_000  # counts in memory at once while resampling

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


# ---- pass@k ----------------------------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    arXiv 2107.03374. Raises ValueError unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right in {num_samples} samples is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at_k_curves(num_samples: ArrayLike, num_correct: ArrayLike, ks: Sequence[int]) -> Floats:
    """`pass_at_k` of N prompts at K values of k at once, [N, K]; `num_samples` is [N] or one number for all.

    The sum over j <= k of the probability that, in draws without replacement, the j-th is the first right one,
    c / (n - j + 1) x prod_{i < j} (n - c - i + 1) / (n - i + 1): positive terms, so that small values keep their
    digits too. Raises EvaluationError for a k above the samples of a prompt, ValueError for impossible counts.
    """
    correct = np.asarray(num_correct, dtype=np.int64)
    samples = np.broadcast_to(np.asarray(num_samples, dtype=np.int64), correct.shape)
    if correct.ndim != 1 or len(correct) == 0 or ((correct < 0) | (correct > samples)).any():
        raise ValueError("every prompt needs between 0 and all of its samples right, and there must be one prompt")
    check_ks(ks, int(samples.min()))
    # Prompts with the same counts have the same curve.
    base = int(samples.max()) + 1
    distinct, place = np.unique(samples * base + correct, return_inverse=True)
    n, c = distinct // base, distinct % base
    solved, unsolved = np.zeros(len(distinct)), np.ones(len(distinct))
    found, wanted = {}, set(ks)
    for k in range(1, max(ks) + 1):
        left = n - k + 1
        solved += unsolved * c / left
        unsolved *= np.maximum(left - c, 0) / left
        if k in wanted:
            found[k] = np.where(k > n - c, 1.0, np.minimum(solved, 1.0))
    curves: Floats = np.stack([found[k] for k in ks], axis=1)[place]
    return curves


def check_ks(ks: Sequence[int], num_samples: int) -> None:
    """Raises EvaluationError unless there is a k and each lies between 1 and `num_samples`."""
    if not ks:
        raise EvaluationError("pass@k needs at least one k; give such as 1.")
    for k in ks:
        if not 1 <= k <= num_samples:
            raise EvaluationError(
                f"pass@{k} cannot be estimated from {num_samples} samples per prompt; give k from 1 to {num_samples},"
                " or draw more samples."
            )


# ---- intervals -------------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: Sequence[float] | Floats,
    *,
    num_resamples: int,
    seed: int,
    level: float = LEVEL,
    clusters: Sequence[Hashable] | None = None,
    weights: Sequence[float] | Floats | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the (weighted) mean of `values`, one per prompt, resampling with replacement.

    `clusters`, one per prompt, are resampled in place of prompts: rows with the same prompt text are no independent
    evidence. Deterministic in `seed`. Raises ValueError when there is no value.
    """
    sample = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = resampled_sums(
        np.stack([sample * weight, weight], axis=1), num_resamples=num_resamples, seed=seed, clusters=clusters
    )
    return percentile_interval(sums[:, 0] / sums[:, 1], level)


def estimate(
    values: Sequence[float] | Floats,
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: Sequence[float] | Floats | None = None,
) -> Estimate:
    """The (weighted) mean of `values`, one per prompt, with its interval; see `bootstrap_interval`."""
    interval = bootstrap_interval(values, num_resamples=NUM_RESAMPLES, seed=seed, clusters=clusters, weights=weights)
    return Estimate(float(np.average(np.asarray(values, dtype=np.float64), weights=weights)), *interval)


def resampled_sums(
    columns: Floats, *, num_resamples: int, seed: int, clusters: Sequence[Hashable] | None = None
) -> Floats:
    """Sums [R, M] of the columns [N, M] over R bootstrap resamples of the rows, or of the clusters that they form.

    As many clusters are drawn as there are, and each brings all of its rows. Raises ValueError when there is no row.
    """
    if len(columns) == 0:
        raise ValueError("an interval needs at least one value")
    units = columns if clusters is None else cluster_sums(columns, clusters)
    num_units, random = len(units), np.random.default_rng(seed)
    found = []
    step = max(1, CHUNK // num_units)
    for first in range(0, num_resamples, step):
        count = min(step, num_resamples - first)
        picks = random.integers(0, num_units, size=(count, num_units))
        picks += np.arange(count)[:, None] * num_units
        times = np.bincount(picks.ravel(), minlength=count * num_units).reshape(count, num_units)
        found.append(times.astype(np.float64) @ units)
    return np.concatenate(found)


def cluster_sums(columns: Floats, clusters: Sequence[Hashable]) -> Floats:
    """The sums [C, M] of the columns [N, M] within each cluster, in the order in which clusters first appear."""
    if len(clusters) != len(columns):
        raise ValueError(f"{len(columns)} rows need as many clusters, not {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.zeros((len(numbers), columns.shape[1]))
    np.add.at(sums, codes, columns)
    return sums


def percentile_interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of resampled values; NaN, where a resample leaves a ratio undefined, are left out."""
    defined = draws[~np.isnan(draws)]
    if len(defined) == 0:
        return math.nan, math.nan
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return float(low), float(high)
