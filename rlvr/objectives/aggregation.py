"""From per-token values to the scalar loss, with denominators that span the whole optimiser step.

Each rule sums over the rows it is given and divides by a count of the step, so the parts computed on micro-batches and
ranks add up to the value of the whole batch however it is split.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Denominator:
    """Counts over all rows of one optimiser step, on all ranks."""

    num_loss_tokens: float
    num_sequences: float  # rows with at least one loss token
    num_rows: float  # all rows, masked or not
    max_completion_length: int  # the generation budget, not the padded width


def _token_mean(values: Tensor, loss_mask: Tensor, denominator: Denominator) -> Tensor:
    return values.sum() / max(denominator.num_loss_tokens, 1.0)


def _sequence_mean(values: Tensor, loss_mask: Tensor, denominator: Denominator) -> Tensor:
    lengths = loss_mask.sum(dim=1).clamp(min=1)
    return (values.sum(dim=1) / lengths).sum() / max(denominator.num_sequences, 1.0)


def _constant(values: Tensor, loss_mask: Tensor, denominator: Denominator) -> Tensor:
    return values.sum() / max(denominator.num_rows * denominator.max_completion_length, 1.0)


def _token_sum(values: Tensor, loss_mask: Tensor, denominator: Denominator) -> Tensor:
    return values.sum() / max(denominator.num_rows, 1.0)


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor, Denominator], Tensor]] = {
    "token_mean": _token_mean,  # DAPO: every token of the step weighs the same
    "sequence_mean": _sequence_mean,  # GRPO: every completion weighs the same
    "constant": _constant,  # Dr.GRPO: neither length enters
    "token_sum": _token_sum,  # RLOO: the log-probability of a completion is the sum over its tokens
}


def aggregate(values: Tensor, loss_mask: Tensor, denominator: Denominator, rule: str) -> Tensor:
    """The share of the step's scalar that these rows contribute.

    values [B, T]; loss_mask [B, T] bool, True = keep. What stands at masked positions, even NaN, changes neither the
    value nor the gradient.
    """
    return AGGREGATIONS[rule](torch.where(loss_mask, values, 0.0), loss_mask, denominator)
