"""Advantages: a reward minus a baseline, perhaps scaled.

Rules shared by all functions here. Groups are given by id, may have any size and lie anywhere in the batch. NaN marks
an unscorable reward: it enters no statistic and its advantage is 0. A group with fewer than two scorable rewards has no
baseline, and one whose scorable rewards are all equal has nothing to prefer: wherever a group is the baseline, the
advantage is exactly 0 in both cases. `num_tokens` [B] are the loss tokens of each completion, the weights of statistics
over tokens; `ddof` and `eps` belong to the standard deviation. Each rule takes all of them and uses what it needs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AdvantageRule(Protocol):
    """rewards [B] with NaN for unscorable, group_ids [B] int64, num_tokens [B]; returns [B]."""

    def __call__(self, rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor: ...


@dataclass(frozen=True)
class _GroupStatistics:
    """Of each member's group, over its scorable rewards; all [B]."""

    count: Tensor
    mean: Tensor
    std: Tensor
    informative: Tensor  # bool: this member is scorable and its group can rank its members


def _group_statistics(rewards: Tensor, group_ids: Tensor, ddof: int) -> _GroupStatistics:
    """Count, mean and standard deviation (its square is sum (R - mean)^2 over count - ddof) of each member's group."""
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
    return _GroupStatistics(count, mean, std, informative)


def _weighted_moments(values: Tensor, weights: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    """m = sum w x / sum w and sqrt(sum w (x - m)^2 / (sum w - ddof)), scalars.

    `weights` are counts, so `ddof` has its usual meaning: a value of weight 3 is the same as three values. What stands
    where the weight is 0, even NaN, does not enter.
    """
    counted = torch.where(weights > 0, values, 0.0)
    total_weight = weights.sum()
    centre = (weights * counted).sum() / total_weight.clamp(min=1.0)
    squares = (weights * (counted - centre).square()).sum()
    return centre, (squares / (total_weight - ddof).clamp(min=1.0)).sqrt()


def _whitened(values: Tensor, weights: Tensor, ddof: int, eps: float) -> Tensor:
    """(x - m) / (s + eps) with the weighted moments; 0 everywhere when the weighted values are all equal."""
    # Equality is of values, not of a rounded standard deviation, as for groups.
    if torch.unique(values[weights > 0]).numel() < 2:
        return torch.zeros_like(values)
    centre, spread = _weighted_moments(values, weights, ddof)
    return (values - centre) / (spread + eps)


def group_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """(R - mean_g) / (std_g + eps): GRPO, arXiv 2402.03300.

    Assumes that the spread of a group's rewards says nothing about its worth: easy and hard prompts are pulled to the
    same scale. `num_tokens` has no effect.
    """
    group = _group_statistics(rewards, group_ids, ddof)
    return torch.where(group.informative, (rewards - group.mean) / (group.std + eps), 0.0)


def centered_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """R - mean_g: Dr.GRPO, arXiv 2503.20783.

    Assumes that rewards of all prompts are on one scale. The member itself is part of its baseline, so the expected
    gradient is (G - 1) / G of the policy gradient. `num_tokens`, `ddof` and `eps` have no effect.
    """
    group = _group_statistics(rewards, group_ids, ddof)
    return torch.where(group.informative, rewards - group.mean, 0.0)


def batch_std_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """(R - mean_g) / (std_batch + eps), the std over all scorable rewards of the batch: Lite PPO, arXiv 2508.08221.

    Assumes that rewards of all prompts are on one scale, which is then set to about 1 step by step. The rewards of
    groups without a signal count in the std: late in training, when most groups are solved, it shrinks and the few
    other advantages grow. `num_tokens` has no effect.
    """
    group = _group_statistics(rewards, group_ids, ddof)
    _, batch_std = _weighted_moments(rewards, (~torch.isnan(rewards)).to(rewards.dtype), ddof)
    return torch.where(group.informative, (rewards - group.mean) / (batch_std + eps), 0.0)


def rloo_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """R minus the mean of the other scorable members of its group, = G / (G - 1) (R - mean_g): RLOO, arXiv 2402.14740.

    Assumes that the members of a group are independent samples of one prompt: a baseline without the member itself
    leaves the policy gradient unbiased. `num_tokens`, `ddof` and `eps` have no effect.
    """
    group = _group_statistics(rewards, group_ids, ddof)
    others = (group.count - 1.0).clamp(min=1.0)
    return torch.where(group.informative, group.count / others * (rewards - group.mean), 0.0)


def reinforce_pp_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """(R - m) / (s + eps), m and s over all tokens of the batch: REINFORCE++, arXiv 2501.03262.

    Without discount and without a KL term in the reward the return of every token is its completion's reward, so each
    reward is weighted by `num_tokens`. Assumes a batch large enough for its mean to be a baseline, and prompts of like
    difficulty: what a prompt makes likely is not subtracted. Long completions decide the mean. Exactly 0 when all
    rewards are equal. `group_ids` has no effect.
    """
    scorable = ~torch.isnan(rewards)
    weights = torch.where(scorable, num_tokens.to(rewards.dtype), 0.0)
    return torch.where(scorable, _whitened(rewards, weights, ddof, eps), 0.0)


def reinforce_pp_baseline_advantage(
    rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float
) -> Tensor:
    """(C - m) / (s + eps) with C = R - mean_g, m and s over all tokens: REINFORCE++-baseline, arXiv 2501.03262.

    Only members of groups with a signal enter m and s; all others get exactly 0. Assumes, as `reinforce_pp_advantage`,
    a batch large enough for one scale; the second centring moves the zero when length and reward go together.
    """
    group = _group_statistics(rewards, group_ids, ddof)
    weights = torch.where(group.informative, num_tokens.to(rewards.dtype), 0.0)
    return torch.where(group.informative, _whitened(rewards - group.mean, weights, ddof, eps), 0.0)


def reward_advantage(rewards: Tensor, group_ids: Tensor, *, num_tokens: Tensor, ddof: int, eps: float) -> Tensor:
    """R itself, 0 where unscorable: REINFORCE without a baseline, Williams 1992.

    Unbiased whatever the rewards, with the largest variance of all rules; assumes rewards whose sign means something
    (such as -1 and 1), or every sampled completion is made more likely. Nothing but `rewards` has an effect.
    """
    return torch.where(torch.isnan(rewards), 0.0, rewards)


ADVANTAGES: dict[str, AdvantageRule] = {
    "group": group_advantage,
    "centered": centered_advantage,
    "batch_std": batch_std_advantage,
    "rloo": rloo_advantage,
    "reinforce_pp": reinforce_pp_advantage,
    "reinforce_pp_baseline": reinforce_pp_baseline_advantage,
    "none": reward_advantage,
}
