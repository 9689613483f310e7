"""Advantages: a reward minus the baseline of its group.

Rules shared by all functions here. Groups are given by id, may have any size and lie anywhere in the batch. NaN marks
an unscorable reward: it enters no baseline and its advantage is 0. A group with fewer than two scorable rewards has no
baseline, and one whose scorable rewards are all equal has nothing to prefer: the advantage is exactly 0 in both cases.
"""

from collections.abc import Callable

import torch
from torch import Tensor

AdvantageFunction = Callable[..., Tensor]


def _group_statistics(rewards: Tensor, group_ids: Tensor, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B] and std [B] of each member's group, and the mask [B] of members that can have an advantage."""
    scorable = ~torch.isnan(rewards)
    values = torch.where(scorable, rewards, 0.0)
    _, group = torch.unique(group_ids, return_inverse=True)
    num_groups = int(group.max()) + 1 if group.numel() else 0

    def total(per_member: Tensor) -> Tensor:
        return rewards.new_zeros(num_groups).index_add(0, group, per_member)[group]

    count = total(scorable.to(rewards.dtype))
    mean = total(values) / count.clamp(min=1.0)
    deviation = torch.where(scorable, rewards - mean, 0.0)
    std = (total(deviation.square()) / (count - ddof).clamp(min=1.0)).sqrt()

    infinity = torch.full((num_groups,), torch.inf, dtype=rewards.dtype, device=rewards.device)
    highest = (-infinity).scatter_reduce(0, group, torch.where(scorable, rewards, -torch.inf), "amax")[group]
    lowest = infinity.scatter_reduce(0, group, torch.where(scorable, rewards, torch.inf), "amin")[group]
    # Compared as values: equal rewards such as 0.1 leave a rounding residue in the mean, which 1/eps would blow up.
    informative = scorable & (count >= 2) & (highest > lowest)
    return mean, std, informative


def group_advantage(rewards: Tensor, group_ids: Tensor, *, ddof: int, eps: float) -> Tensor:
    """(R - mean_g) / (std_g + eps): GRPO, arXiv 2402.03300.

    rewards [B] with NaN for unscorable, group_ids [B] int64; returns [B]. Assumes that the spread of a group's rewards
    says nothing about its worth: easy and hard prompts are pulled to the same scale.
    """
    mean, std, informative = _group_statistics(rewards, group_ids, ddof)
    return torch.where(informative, (rewards - mean) / (std + eps), 0.0)


def centered_advantage(rewards: Tensor, group_ids: Tensor, *, ddof: int, eps: float) -> Tensor:
    """R - mean_g: Dr.GRPO, arXiv 2503.20783. `ddof` and `eps` belong to the shared signature and have no effect."""
    mean, _, informative = _group_statistics(rewards, group_ids, ddof)
    return torch.where(informative, rewards - mean, 0.0)


ADVANTAGES: dict[str, AdvantageFunction] = {"group": group_advantage, "centered": centered_advantage}
