"""What of the base model's reach is kept, lost and won by tuning: the support metrics of arXiv 2507.14843.

A problem is in a model's support when at least one of its k samples is right. With few samples that is as much luck as
reach: see `detectable_pass_rate`, and read the intervals.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlvr.errors import EvaluationError
from rlvr.evaluation.estimators import NUM_RESAMPLES, Estimate, Floats, percentile_interval, resampled_sums

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Support:
    """Numbers of problems."""

    preserved: int  # solved by both
    shrunk: int  # by the base only
    expanded: int  # by the tuned only
    unsolved: int  # by neither


@dataclass(frozen=True)
class SupportMetrics:
    """Ratios of P preserved, S shrunk and E expanded problems; NaN where a ratio is 0/0."""

    srr: Estimate  # support retention rate, P / (P + S)
    ndr: Estimate  # net discovery rate, E / (P + E)
    sds: Estimate  # support dynamic score, their harmonic mean 2 P E / (P^2 + 2 P E + E S)
    nscr: Estimate  # net support change rate, (E - S) / (P + E + S)


def support_of(base: Bools, tuned: Bools) -> Support:
    """Counts over N problems from the outcomes [N, n] of each model.

    Raises EvaluationError unless both have as many samples: who draws more solves more.
    """
    if base.shape[1] != tuned.shape[1]:
        raise EvaluationError(
            f"The base model has {base.shape[1]} samples per prompt and the tuned model {tuned.shape[1]}; support is"
            " compared between equal numbers, so draw as many of both."
        )
    return Support(*(int(count) for count in _indicators(base, tuned).sum(axis=0)))


def support_metrics(
    base: Bools, tuned: Bools, *, seed: int, clusters: Sequence[Hashable] | None = None
) -> SupportMetrics:
    """SRR, NDR, SDS and NSCR from the outcomes [N, n] of each model, with bootstrap intervals over problems.

    Resamples that leave a ratio undefined are left out of its interval. Raises EvaluationError as `support_of`.
    """
    found = support_of(base, tuned)
    counts = np.array([[found.preserved, found.shrunk, found.expanded, found.unsolved]], dtype=np.float64)
    values = support_ratios(counts)
    draws = support_ratios(
        resampled_sums(_indicators(base, tuned), num_resamples=NUM_RESAMPLES, seed=seed, clusters=clusters)
    )
    return SupportMetrics(
        **{name: Estimate(float(value[0]), *percentile_interval(draws[name])) for name, value in values.items()}
    )


def support_ratios(counts: Floats) -> dict[str, Floats]:
    """The ratios [R] by name from rows [R, 4] of numbers preserved, shrunk, expanded and unsolved."""
    preserved, shrunk, expanded, _ = counts.T
    with np.errstate(invalid="ignore"):
        return {
            "srr": preserved / (preserved + shrunk),
            "ndr": expanded / (preserved + expanded),
            "sds": 2 * preserved * expanded / (preserved**2 + 2 * preserved * expanded + expanded * shrunk),
            "nscr": (expanded - shrunk) / (preserved + expanded + shrunk),
        }


def detectable_pass_rate(num_samples: int, level: float = 0.95) -> float:
    """The least pass rate whose problem is solved with probability `level` in so many samples, 1 - (1 - level)^(1/k).

    About 3 / k: a problem that is solved less often may well look unsolved.
    """
    return -math.expm1(math.log1p(-level) / num_samples)


def _indicators(base: Bools, tuned: Bools) -> Floats:
    """[N, 4] which of the four each problem is."""
    ours, theirs = tuned.any(axis=1), base.any(axis=1)
    return np.stack([theirs & ours, theirs & ~ours, ~theirs & ours, ~theirs & ~ours], axis=1).astype(np.float64)
