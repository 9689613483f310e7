"""pass@k of a base and a tuned model on the same prompts, and the k at which the base catches up."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlvr.evaluation.estimators import (
    NUM_RESAMPLES,
    Estimate,
    Floats,
    cluster_sums,
    pass_at_k_curves,
    percentile_interval,
    resampled_sums,
)
from rlvr.evaluation.support import Bools

ROUNDING = 1e-12  # differences of pass@k that are no larger are 0


@dataclass(frozen=True)
class Point:
    """pass@k at one k."""

    k: int
    base: Estimate
    tuned: Estimate
    difference: Estimate  # tuned minus base
    num_differing: int  # prompts, or clusters of them, on which the two are not equal


@dataclass(frozen=True)
class Crossing:
    """The k at which tuned minus base goes from above to below 0 for the last time, with its 95% interval.

    0 stands for a tuned model that is nowhere ahead and then behind, infinity for one that is still ahead at the
    largest k, and NaN for curves that are equal everywhere.
    """

    k: float
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """Both curves and where they cross."""

    points: tuple[Point, ...]  # by ascending k
    crossing: Crossing
    num_prompts: int  # or clusters of them


def curve_ks(num_samples: int) -> list[int]:
    """1, 2, 4 and so on up to the number of samples, which is the last."""
    return [*(2**power for power in range((num_samples - 1).bit_length())), num_samples]


def pass_at_k_curves_of(
    base: Bools,
    tuned: Bools,
    *,
    seed: int,
    ks: Sequence[int] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Curves:
    """The curves from the outcomes [N, n] and [N, m] of the two models on the same N prompts.

    `ks` are by default those of `curve_ks`, up to the lesser of n and m. All intervals come from the same bootstrap
    resamples of prompts, or of clusters, and hold for each k by itself. Raises EvaluationError for a k that one of the
    models has too few samples for.
    """
    grid = sorted(set(curve_ks(min(base.shape[1], tuned.shape[1])) if ks is None else ks))
    theirs = pass_at_k_curves(base.shape[1], base.sum(axis=1), grid)
    ours = pass_at_k_curves(tuned.shape[1], tuned.sum(axis=1), grid)
    rows = np.concatenate([theirs, ours, np.ones((len(base), 1))], axis=1)
    sums = resampled_sums(rows, num_resamples=NUM_RESAMPLES, seed=seed, clusters=clusters)
    draws = sums[:, :-1] / sums[:, -1:]
    units = ours - theirs if clusters is None else cluster_sums(ours - theirs, clusters)
    differing = (np.abs(units) > ROUNDING).sum(axis=0)
    size = len(grid)
    drawn = {"base": draws[:, :size], "tuned": draws[:, size:], "difference": draws[:, size:] - draws[:, :size]}
    means = {"base": theirs.mean(axis=0), "tuned": ours.mean(axis=0), "difference": (ours - theirs).mean(axis=0)}
    points = tuple(
        Point(
            k=k,
            num_differing=int(differing[place]),
            **{
                name: Estimate(float(mean[place]), *percentile_interval(drawn[name][:, place]))
                for name, mean in means.items()
            },
        )
        for place, k in enumerate(grid)
    )
    found = crossing_points(means["difference"][None], grid)[0]
    crossing = Crossing(float(found), *_interval(crossing_points(drawn["difference"], grid)))
    return Curves(points, crossing, num_prompts=len(units))


def crossing_points(differences: Floats, ks: Sequence[int]) -> Floats:
    """Where each row [R, K] of tuned minus base crosses 0, as `Crossing` defines it; linear in log k between two k."""
    above, below = differences > ROUNDING, differences < -ROUNDING
    places, logs = np.arange(len(ks)), np.log(np.asarray(ks, dtype=np.float64))
    last_above = np.where(above, places, -1).max(axis=1)
    last_below = np.where(below, places, -1).max(axis=1)
    first_below = np.where(below & (places > last_above[:, None]), places, len(ks) - 1).min(axis=1)
    rows = np.arange(len(differences))
    start, end = differences[rows, last_above], differences[rows, first_below]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # rows without a crossing
        share = start / (start - end)
        inside = np.exp(logs[last_above] + share * (logs[first_below] - logs[last_above]))
    found = np.where(last_above > last_below, math.inf, np.where(last_above < 0, 0.0, inside))
    return np.where(last_above == last_below, math.nan, found)


def _interval(crossings: Floats) -> tuple[float, float]:
    """The middle 95% without interpolation, which infinity does not allow."""
    defined = crossings[~np.isnan(crossings)]
    if len(defined) == 0:
        return math.nan, math.nan
    return float(np.quantile(defined, 0.025, method="lower")), float(np.quantile(defined, 0.975, method="higher"))
