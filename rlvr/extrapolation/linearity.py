"""How linear in the step weights and log-probabilities moved: pure functions of trajectories.

A trajectory is what one scalar was at T checkpoints; N of them are a tensor [T, N]. Arithmetic is in float64, because
what moved is a small difference of large numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LINEAR_ABOVE = 0.7  # R^2 from which on a trajectory counts as linear (arXiv 2601.04537)
HISTOGRAM_BINS = 20  # of equal width, from 0 to 1


def step_r_squared(values: Tensor, steps: Sequence[int]) -> Tensor:
    """R^2 [N] in float64 of each trajectory [T, N]: its squared Pearson correlation with the step.

    corr(x, t)^2 = (sum (x - mean x)(t - mean t))^2 / (sum (x - mean x)^2 sum (t - mean t)^2), which is the R^2 of the
    least-squares line over the steps. NaN for what never moved, which is neither linear nor not.
    """
    when = torch.tensor(steps, dtype=torch.float64)
    when = (when - when.mean()).unsqueeze(1)
    # Off the first value before the mean is taken: a small move then keeps all its digits.
    moves = values.double() - values[0].double()
    moves = moves - moves.mean(dim=0)
    shared = (moves * when).sum(dim=0).square()
    return (shared / (moves.square().sum(dim=0) * when.square().sum())).clamp(max=1.0)


def kept_weights(values: Tensor, min_range: float, min_distinct: int) -> Tensor:
    """[N] bool: the trajectories [T, N] whose range exceeds `min_range` and that take `min_distinct` values or more.

    In a 16-bit checkpoint most weights stand still, and many of the others jump once by the least step that there is;
    the correlation of such a jump with the step says nothing of linearity.
    """
    ordered = values.double().sort(dim=0).values
    distinct = 1 + (ordered.diff(dim=0) != 0).sum(dim=0)
    return (ordered[-1] - ordered[0] > min_range) & (distinct >= min_distinct)


def kept_tokens(logprobs: Tensor, min_move: float) -> Tensor:
    """[N] bool: tokens whose log-probability [T, N] moved by more than `min_move` nats from first to last."""
    return (logprobs[-1].double() - logprobs[0].double()).abs() > min_move


@dataclass(frozen=True)
class Fit:
    """R^2 of the trajectories that were kept of those looked at; the statistics are None where none was."""

    looked_at: int
    kept: int
    median: float | None
    low: float | None  # first and third quartile
    high: float | None
    linear: float | None  # share of the kept with R^2 above LINEAR_ABOVE

    def to_json(self) -> dict[str, Any]:
        """With the kept share, without which R^2 says little: keeping what moved is not a random sample."""
        return {
            "sampled": self.looked_at,
            "kept": self.kept,
            "kept_fraction": self.kept / self.looked_at if self.looked_at else None,
            "median_r2": self.median,
            "q25_r2": self.low,
            "q75_r2": self.high,
            f"share_above_{LINEAR_ABOVE}": self.linear,
        }


def fit_of(r2: Tensor, looked_at: int) -> Fit:
    """The statistics of the R^2 [kept] of those kept among `looked_at`; quartiles by linear interpolation."""
    if not len(r2):
        return Fit(looked_at, 0, None, None, None, None)
    # torch.quantile takes 16 million values at most.
    low, median, high = (float(each) for each in np.quantile(r2.numpy(), [0.25, 0.5, 0.75]))
    return Fit(looked_at, len(r2), median, low, high, float((r2 > LINEAR_ABOVE).double().mean()))


def histogram(r2: Tensor) -> list[int]:
    """How many of the R^2 [kept] lie in each of HISTOGRAM_BINS bins of [0, 1]; 1 is in the last one."""
    places = (r2 * HISTOGRAM_BINS).long().clamp(0, HISTOGRAM_BINS - 1)
    counts: list[int] = torch.bincount(places, minlength=HISTOGRAM_BINS).tolist()
    return counts


def nearest_to_quantiles(r2: Tensor, shares: Sequence[float]) -> list[int]:
    """For each share the index of the R^2 [kept] that lies nearest to that quantile, without repetition."""
    if not len(r2):
        return []
    wanted = np.quantile(r2.numpy(), shares)
    return list(dict.fromkeys(int((r2 - float(each)).abs().argmin()) for each in wanted))


def window_products(values: Tensor) -> Tensor:
    """[T - 1, T - 1] in float64: dot products of the moves x_(i+1) - x_i of some trajectories [T, N].

    Those of parts of a model add up to those of the model.
    """
    moves = values.double().diff(dim=0)
    return moves @ moves.T


def cosines(products: Tensor) -> Tensor:
    """cos_ij = p_ij / sqrt(p_ii p_jj) of the dot products [W, W]; NaN where one of the windows has no move."""
    lengths = products.diagonal().sqrt()
    return (products / lengths.unsqueeze(1) / lengths).clamp(-1.0, 1.0)
