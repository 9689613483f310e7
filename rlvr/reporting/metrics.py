"""Metrics of a generation batch, over all ranks. Names state quantity and reduction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rewards._batch import boxed
from rewards._text import tagged
from rlvr.gathering import gather_floats
from rlvr.verification import Verdicts


def rollout_metrics(
    names: Sequence[str],
    components: Tensor,
    rewards: Tensor,
    outcomes: Tensor,
    group_ids: Tensor,
    advantages: Tensor,
) -> dict[str, float]:
    """Rewards, outcomes and group health; components [B, R], the others [B], NaN where there is no verdict.

    A group is solved (unsolved) when all its scorable completions are right (wrong); one whose rewards are all equal
    teaches nothing.
    """
    metrics = {
        "reward/mean": torch.nanmean(rewards).item(),
        "reward/std": _std(rewards),
        "outcome/pass_rate": torch.nanmean(outcomes).item(),
        "outcome/unscorable_frac": torch.isnan(outcomes).float().mean().item(),
        "advantage/mean": advantages.mean().item(),
        "advantage/std": _std(advantages),
        "advantage/abs_mean": advantages.abs().mean().item(),
        "advantage/zero_frac": (advantages == 0).float().mean().item(),
    }
    for name, column in zip(names, components.unbind(dim=1), strict=True):
        metrics[f"reward/{name}/mean"] = torch.nanmean(column).item()
        metrics[f"reward/{name}/std"] = _std(column)
    groups = [group_ids == group for group in torch.unique(group_ids)]
    pass_rates = torch.stack([torch.nanmean(outcomes[group]) for group in groups])
    # With n completions of each prompt the mean pass rate is avg@n, and this the unbiased pass@n.
    metrics["outcome/pass_at_n"] = torch.nanmean(torch.where(pass_rates.isnan(), pass_rates, pass_rates > 0)).item()
    metrics["groups/equal_reward_frac"] = sum(_all_equal(rewards[group]) for group in groups) / len(groups)
    metrics["groups/solved_frac"] = (pass_rates == 1).float().mean().item()
    metrics["groups/unsolved_frac"] = (pass_rates == 0).float().mean().item()
    return metrics


def mean_shares(accelerator: Accelerator, verdicts: Verdicts) -> dict[str, float]:
    """How the verifier came to its verdicts: shares of the completions of all ranks."""
    shares = verdicts.shares()
    means = gather_floats(accelerator, list(shares.values())).mean(dim=0).tolist()
    return dict(zip(shares, means, strict=True))


def _std(values: Tensor) -> float:
    scorable = values[~torch.isnan(values)]
    return scorable.std(correction=0).item() if scorable.numel() else float("nan")


def _all_equal(rewards: Tensor) -> bool:
    """Whether the scorable rewards of a group leave nothing to prefer."""
    return torch.unique(rewards[~torch.isnan(rewards)]).numel() < 2


def majority_rate(table: Mapping[str, Sequence[Any]]) -> float:
    """maj@n: the share of prompts whose most frequent answer is right, of the prompts with an answer and a verdict.

    `table` is that of `completions_table`. The answer is the text in the last `<answer>...</answer>`, else in the last
    `\\boxed{}`, else the whole completion; at a tie the one that came first counts.
    """
    groups: dict[Any, list[tuple[str, float]]] = {}
    for prompt_id, text, outcome in zip(table["prompt_id"], table["completion"], table["outcome"], strict=True):
        answer = tagged(text, "answer") or boxed(text) or text.strip()
        if answer and outcome is not None:
            groups.setdefault(prompt_id, []).append((answer, outcome))
    right = []
    for members in groups.values():
        winner = Counter(answer for answer, _ in members).most_common(1)[0][0]
        right.append(next(outcome for answer, outcome in members if answer == winner))
    return sum(right) / len(right) if right else float("nan")
