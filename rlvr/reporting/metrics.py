"""Metrics of a generation batch, over all ranks. Names state quantity and reduction."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rollout_metrics(
    names: Sequence[str],
    components: Tensor,
    rewards: Tensor,
    outcomes: Tensor,
    group_ids: Tensor,
    advantages: Tensor,
) -> dict[str, float]:
    """Rewards, outcomes and group health; components [B, R], the others [B], NaN where there is no verdict.

    A group is solved (unsolved) when all its scorable completions are right (wrong): neither teaches anything.
    """
    metrics = {
        "reward/mean": torch.nanmean(rewards).item(),
        "reward/std": _std(rewards),
        "outcome/pass_rate": torch.nanmean(outcomes).item(),
        "outcome/unscorable_frac": torch.isnan(outcomes).float().mean().item(),
        "advantage/abs_mean": advantages.abs().mean().item(),
        "advantage/zero_frac": (advantages == 0).float().mean().item(),
    }
    for name, column in zip(names, components.unbind(dim=1), strict=True):
        metrics[f"reward/{name}/mean"] = torch.nanmean(column).item()
    pass_rates = torch.stack([torch.nanmean(outcomes[group_ids == group]) for group in torch.unique(group_ids)])
    metrics["groups/solved_frac"] = (pass_rates == 1).float().mean().item()
    metrics["groups/unsolved_frac"] = (pass_rates == 0).float().mean().item()
    return metrics


def _std(values: Tensor) -> float:
    scorable = values[~torch.isnan(values)]
    return scorable.std(correction=0).item() if scorable.numel() else float("nan")
