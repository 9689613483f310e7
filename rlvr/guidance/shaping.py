"""What the loss needs of completions that were not sampled from its own context: sampler log-probs and gamma."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlvr.objectives.regularizers.base import linear_quantile
from rlvr.objectives.shaped_ratio import shaping_gamma
from rlvr.types import Rollouts, TrainRow

Logprobs = Callable[[Sequence[TrainRow]], list[Tensor]]  # [T] of each row under the policy that sampled
RATIO_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


@dataclass(frozen=True)
class ShapedRows:
    """The rows of this rank, and metrics of all ranks."""

    rows: list[TrainRow]
    metrics: dict[str, float]


def with_shaped_ratios(
    rows: Sequence[TrainRow],
    rollouts: Rollouts,
    logprobs: Logprobs,
    gather: Callable[[Tensor], Tensor],
    *,
    quantile: float,
    device: torch.device,
) -> ShapedRows:
    """Gives every off-policy row its sampler's log-probs and its gamma. All ranks call it.

    Gamma is the `quantile` of the ratios pi(o | q) / pi(o | q, h) at the loss tokens of all ranks' rows, under the
    policy that sampled: one for the generation batch, so that it does not depend on how the batch is cut. The released
    code of Guide takes it per micro-batch, padding included.
    """
    off_policy = {row: how for row, how in enumerate(rollouts.off_policy) if how is not None}
    hinted = [row for row, how in off_policy.items() if not how.is_certain]
    as_sampled, as_trained = _under_both(rows, rollouts, hinted, logprobs)
    masks = [torch.tensor(rows[row].loss_mask, device=device) for row in hinted]
    differences = [(new - old)[mask] for new, old, mask in zip(as_trained, as_sampled, masks, strict=True)]
    found = gather(torch.cat(differences) if differences else torch.zeros(0, device=device))
    gamma = shaping_gamma(found, quantile) if len(found) else None
    shaped = list(rows)
    for row, behaviour in zip(hinted, as_sampled, strict=True):
        shaped[row] = replace(rows[row], behaviour_logprobs=behaviour, gamma=gamma)
    for row, how in off_policy.items():
        if how.is_certain:
            certain = torch.zeros(len(rows[row].completion_ids))
            shaped[row] = replace(rows[row], behaviour_logprobs=certain, gamma=how.gamma)
    if gamma is None:
        return ShapedRows(shaped, {})
    quantiles = {
        f"guidance/ratio_{name}": linear_quantile(found.exp(), q).item() for name, q in RATIO_QUANTILES.items()
    }
    return ShapedRows(shaped, quantiles | {"guidance/gamma": gamma})


def _under_both(
    rows: Sequence[TrainRow], rollouts: Rollouts, hinted: Sequence[int], logprobs: Logprobs
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs [T] of the hinted rows under the context they were sampled from, and the one they are trained with.

    In one go, as batches are then fuller; the latter are at hand where the loss needs old log-probs anyway.
    """
    asked = [replace(rows[row], context_ids=rollouts.context_ids[row]) for row in hinted]
    unknown = [row for row in hinted if rows[row].old_logprobs is None]
    found = logprobs([*asked, *[rows[row] for row in unknown]])
    trained = dict(zip(unknown, found[len(hinted) :], strict=True))
    as_trained = []
    for row in hinted:
        old = rows[row].old_logprobs
        as_trained.append(trained[row] if old is None else old)
    return found[: len(hinted)], as_trained
