"""New weights from those of checkpoints, tensor by tensor; pure functions of tensors that share a shape.

Arithmetic is in float32, or float64 where a tensor is stored so, and what comes out is cast once, when it is stored.
All but `timber` act on every weight by itself, so they may be given some rows of the tensors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlvr.errors import ExtrapolationError

WEIGHT_SUM_TOLERANCE = 1e-6


def extrapolate(base: Tensor, tuned: Tensor, alpha: float, stored: torch.dtype | None = None) -> Tensor:
    """W = A + alpha (B - A), arXiv 2601.04537: where training goes that went from A to B if it goes on alike.

    Any shape. `alpha` 0 is A itself and 1 is B itself, in their stored dtype, bit for bit. Between, `torch.lerp` starts
    from the nearer of the two, so that weights that did not move stay what they are for any `alpha`.

    The result is float32 (float64), unless `stored`, the dtype in which it will be kept, is that of both A and B: then
    it is cast already, as `torch.lerp` of 16-bit tensors calculates in float32 and rounds once, in a third of the time.
    """
    if alpha == 0.0:
        return base
    if alpha == 1.0:
        return tuned
    dtype = stored if stored == base.dtype == tuned.dtype else _arithmetic_dtype((base, tuned))
    return torch.lerp(base.to(dtype), tuned.to(dtype), alpha)


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """W = sum_i w_i W_i, any shape.

    Raises ExtrapolationError unless there is a finite weight for each tensor and they sum to 1.
    """
    if len(weights) != len(tensors):
        raise ExtrapolationError(f"{len(tensors)} checkpoints have {len(weights)} weights; give one for each.")
    # NaN fails the comparison too.
    if not abs(sum(weights) - 1.0) <= WEIGHT_SUM_TOLERANCE:
        raise ExtrapolationError(f"The weights sum to {sum(weights):g}; make them sum to 1.")
    return _combined(tensors, weights, _arithmetic_dtype(tensors))


def line_fit(tensors: Sequence[Tensor], steps: Sequence[int], at: float) -> tuple[Tensor, float]:
    """The value at step `at` of each weight's least-squares line over the steps, and the tensor's R^2.

    See `line_at` and `r_squared`; both are in float64, because residuals are small differences. Raises
    ExtrapolationError for fewer than 3 checkpoints, or two of the same step.
    """
    return line_at(tensors, steps, at), r_squared(*line_sums(tensors, steps))


def line_at(tensors: Sequence[Tensor], steps: Sequence[int], at: float) -> Tensor:
    """W = mean_i W_i + b (at - mean_i t_i), b = sum_i (t_i - mean t) W_i / sum_i (t_i - mean t)^2, in float64."""
    offsets = _centred(steps)
    spread, middle = math.fsum(x * x for x in offsets), math.fsum(steps) / len(steps)
    weights = [1.0 / len(steps) + (at - middle) * x / spread for x in offsets]
    return _combined(tensors, weights, torch.float64)


def line_sums(tensors: Sequence[Tensor], steps: Sequence[int]) -> tuple[float, float]:
    """Squared residuals of the lines and squared deviations from the means, both summed over the tensor.

    The sums of a tensor's rows add up to those of the tensor.
    """
    offsets = _centred(steps)
    newest = tensors[-1].double()
    moves = [tensor.double() - newest for tensor in tensors]
    mean = torch.stack(moves).mean(dim=0)
    deviations = [move - mean for move in moves]
    slope = torch.zeros_like(mean)
    for x, deviation in zip(offsets, deviations, strict=True):
        slope.add_(deviation, alpha=x)
    slope /= math.fsum(x * x for x in offsets)
    residual = total = 0.0
    for x, deviation in zip(offsets, deviations, strict=True):
        total += float(deviation.square().sum())
        residual += float(deviation.sub_(slope, alpha=x).square_().sum())
    return residual, total


def r_squared(residual: float, total: float) -> float:
    """R^2 = 1 - residual / total over all weights of a tensor; 1 for one that never moved, as its line is exact."""
    return 1.0 - residual / total if total > 0.0 else 1.0


def timber(base: Tensor, tuned: Tensor, keep: float) -> Tensor:
    """Timber: W = A + U diag(s_1 .. s_k, g s_(k+1) ..) V^T, with D = B - A = U diag(s) V^T and g = `keep`.

    k = ceil(exp(-sum_i p_i log p_i)), p = s / sum(s), is the effective rank: the strong directions of post-training
    stay, and of the weak ones the share `keep` does. A, B [m, n]; the singular values are found in float64. Tensors
    that are no matrices stay B, and so does a matrix that did not move; `keep` 1 is B itself.
    """
    if base.dim() != 2 or keep == 1.0:
        return tuned
    left, values, right = torch.linalg.svd(tuned.double() - base.double(), full_matrices=False)
    if not float(values.sum()) > 0.0:
        return tuned
    rank = min(effective_rank(values), len(values))
    # The tail is taken off B, rather than the rest put on A: what has no tail stays B without rounding.
    tail = (left[:, rank:] * values[rank:]) @ right[rank:]
    return torch.sub(tuned.double(), tail, alpha=1.0 - keep).to(_arithmetic_dtype((base, tuned)))


def effective_rank(values: Tensor) -> int:
    """ceil(exp(entropy)) of singular values [n] that are divided by their sum, not by that of their squares."""
    shares = values / values.sum()
    return math.ceil(math.exp(float(torch.special.entr(shares).sum())))


def _combined(tensors: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """sum_i w_i W_i with weights that sum to 1, as W_j + sum_i w_i (W_i - W_j) with the largest w_j.

    So a tensor that is the same in all checkpoints, or that has all the weight, comes out without rounding.
    """
    largest = max(range(len(weights)), key=lambda index: weights[index])
    anchor = tensors[largest].to(dtype)
    result = anchor.clone()
    for index, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        if index != largest and weight != 0.0:
            result.add_(tensor.to(dtype) - anchor, alpha=weight)
    return result


def _centred(steps: Sequence[int]) -> list[float]:
    if len(steps) < 3 or len(set(steps)) < len(steps):
        raise ExtrapolationError(
            f"A line needs 3 checkpoints of different steps or more, not those of {', '.join(map(str, steps))}."
        )
    middle = math.fsum(steps) / len(steps)
    return [step - middle for step in steps]


def _arithmetic_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


# ---- what a command can ask for --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """How an operation is called on the tensors of all checkpoints, its settings, and the dtype of what is stored.

    The last checkpoint is the one from which the rest is copied.
    """

    formula: str
    apply: Callable[[Sequence[Tensor], Mapping[str, Any], torch.dtype], Tensor]
    by_rows: bool = True  # rows can be computed apart from each other


OPERATIONS: dict[str, Operation] = {
    "extrapolate": Operation(
        "A + alpha (B - A)", lambda each, given, stored: extrapolate(each[0], each[1], given["alpha"], stored)
    ),
    "average": Operation("sum_i w_i W_i", lambda each, given, stored: average(each, given["weights"])),
    "line_fit": Operation(
        "line through W_i at a step", lambda each, given, stored: line_at(each, given["steps"], given["at"])
    ),
    "timber": Operation(
        "A + low-rank part of (B - A)",
        lambda each, given, stored: timber(each[0], each[1], given["keep"]),
        by_rows=False,
    ),
}
