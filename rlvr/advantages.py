"""The advantage stage: from verdicts of this rank to advantages that rest on the statistics of all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from rlvr.batching import loss_masks_of
from rlvr.config import Algorithm
from rlvr.gathering import gather_floats, gather_ragged
from rlvr.objectives.advantage import ADVANTAGES
from rlvr.objectives.group_filter import GroupFilter, kept_members
from rlvr.objectives.reward_kl import baselined_rewards, token_returns, whitened_tokens
from rlvr.reporting.metrics import rollout_metrics
from rlvr.types import ScoredRollouts

TOKEN_RULES = ("reinforce_pp", "reinforce_pp_baseline")  # their returns are of tokens once the reward has a KL part


@dataclass(frozen=True)
class StepAdvantages:
    """Of this rank's completions, with the metrics of all ranks."""

    of_completions: list[float]  # with `of_tokens`, their mean over each completion's loss tokens
    of_tokens: list[Tensor] | None  # [T] each, where the rule is of tokens
    metrics: dict[str, float]


def step_advantages(
    scored: ScoredRollouts,
    penalties: Sequence[Tensor],
    algorithm: Algorithm,
    accelerator: Accelerator,
    group_filter: GroupFilter | None = None,
) -> StepAdvantages:
    """Groups may lie across ranks, so rewards are gathered. `penalties` [T] per completion are taken off the reward.

    Completions of groups that `group_filter` drops, by their rewards without penalties, get advantage 0. That is our
    choice, where RLPR takes the prompts out of the batch: they stay in statistics over the batch, in denominators and
    under regularisers, so that what is left does not weigh more when much is dropped.
    """
    verdicts, rollouts = scored.verdicts, scored.rollouts
    rewards = gather_floats(accelerator, [verdicts.rewards]).squeeze(1)
    outcomes = gather_floats(accelerator, [scored.unhelped.verdicts.outcomes]).squeeze(1)
    components = gather_floats(accelerator, list(zip(*verdicts.components, strict=True)))
    loss_masks = loss_masks_of(rollouts, algorithm.overlong_filter)
    num_tokens = gather_floats(accelerator, [[float(sum(mask)) for mask in loss_masks]]).squeeze(1)
    group_ids = accelerator.gather(torch.tensor(rollouts.group_ids, device=accelerator.device))
    first = accelerator.process_index * len(rollouts.group_ids)
    mine = slice(first, first + len(rollouts.group_ids))

    metrics, of_tokens = {}, None
    optimised = rewards
    if penalties:
        totals = gather_floats(accelerator, [[penalty.sum().item() for penalty in penalties]]).squeeze(1)
        optimised = rewards - totals
        metrics["reward/kl_penalty"] = totals.mean().item()
    if penalties and algorithm.advantage in TOKEN_RULES:
        of_tokens = _token_advantages(rewards, group_ids, mine, penalties, loss_masks, algorithm, accelerator)
        means = [_loss_token_mean(*each) for each in zip(of_tokens, loss_masks, strict=True)]
        advantages = gather_floats(accelerator, [means]).squeeze(1)
    else:
        advantages = ADVANTAGES[algorithm.advantage](
            optimised,
            group_ids,
            num_tokens=num_tokens,
            ddof=algorithm.advantage_ddof,
            eps=algorithm.advantage_eps,
        )
    if group_filter is not None:
        kept, metrics["groups/filtered_frac"] = kept_members(group_filter, rewards, group_ids)
        advantages = torch.where(kept, advantages, 0.0)
        if of_tokens is not None:
            of_tokens = [torch.where(keep, each, 0.0) for keep, each in zip(kept[mine], of_tokens, strict=True)]
    metrics |= rollout_metrics(verdicts.names, components, rewards, outcomes, group_ids, advantages)
    return StepAdvantages(advantages[mine].tolist(), of_tokens, metrics)


def _token_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    mine: slice,
    penalties: Sequence[Tensor],
    loss_masks: Sequence[Sequence[bool]],
    algorithm: Algorithm,
    accelerator: Accelerator,
) -> list[Tensor]:
    """Whitened returns [T] of this rank's completions."""
    returns = token_returns(baselined_rewards(algorithm.advantage, rewards, group_ids)[mine], penalties)
    masks = [torch.tensor(mask, device=accelerator.device) for mask in loss_masks]
    counted = torch.cat([values[mask] for values, mask in zip(returns, masks, strict=True)])
    everyones = gather_ragged(accelerator, counted)
    return [
        whitened_tokens(values, everyones, ddof=algorithm.advantage_ddof, eps=algorithm.advantage_eps)
        for values in returns
    ]


def _loss_token_mean(values: Tensor, loss_mask: Sequence[bool]) -> float:
    counted = values[torch.tensor(loss_mask, device=values.device)]
    return counted.mean().item() if len(counted) else 0.0
