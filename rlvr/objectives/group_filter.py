"""Which groups of a generation batch to train on, by how much their rewards differ."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class GroupFilter(Protocol):
    """Decides from the deviations of the groups' rewards; what it remembers goes into checkpoints."""

    def keep(self, deviations: Sequence[float]) -> list[bool]:
        """Which groups of this step to train on; NaN is a group without verdicts. Advances by one step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What has changed since construction."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


@dataclass
class StdFilter:
    """Drops prompts whose rewards hardly differ within the group, against a moving average of that deviation.

    RLPR's (Yu et al. 2025, arXiv:2506.18254). Every step, which is a generation batch here, the mean of the groups'
    deviations enters ema = decay * ema + (1 - decay) * mean, which begins with the mean of step `first_step`. From step
    `first_filtered` on a prompt is kept if its deviation >= ratio * ema, by the average before this step entered it
    (our choice; the paper's text leaves the order open). Steps count from 1. A deviation that is NaN, of a group
    without verdicts, is dropped once filtering began and never averaged. Assumes that a small deviation means a prompt
    that is too easy or too hard, and rewards on a scale that all prompts share.
    """

    decay: float = 0.99
    ratio: float = 0.5
    first_step: int = 6
    first_filtered: int = 11
    step: int = 0
    ema: float | None = None

    def keep(self, deviations: Sequence[float]) -> list[bool]:
        """Which groups of this step to train on. Advances by one step."""
        self.step += 1
        kept = [True] * len(deviations)
        if self.step >= self.first_filtered and self.ema is not None:
            kept = [deviation >= self.ratio * self.ema for deviation in deviations]
        known = [deviation for deviation in deviations if not math.isnan(deviation)]
        if self.step >= self.first_step and known:
            mean = sum(known) / len(known)
            self.ema = mean if self.ema is None else self.decay * self.ema + (1 - self.decay) * mean
        return kept

    def state_dict(self) -> dict[str, Any]:
        """What has changed since construction."""
        return {"step": self.step, "ema": self.ema}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.step = state["step"]
        self.ema = state["ema"]


def kept_members(group_filter: GroupFilter, rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, float]:
    """(whether the filter keeps each completion's group [B] bool, share of groups that it drops).

    `rewards` [B], NaN for unscorable, and `group_ids` [B] are of all ranks, so that all of them decide alike. The
    deviation of a group is sqrt(mean (R - mean_g)^2) over its scorable rewards; another denominator would be the same
    factor in every group of one size, and in their average.
    """
    groups, member_of = torch.unique(group_ids, return_inverse=True)
    deviations = [_deviation(rewards[member_of == group]) for group in range(len(groups))]
    kept = group_filter.keep(deviations)
    return torch.tensor(kept, device=rewards.device)[member_of], 1 - sum(kept) / len(kept)


def _deviation(rewards: Tensor) -> float:
    scorable = rewards[~torch.isnan(rewards)].double()
    return scorable.std(correction=0).item() if len(scorable) else math.nan


GROUP_FILTERS: dict[str, Callable[[], GroupFilter] | None] = {"none": None, "std_ema": StdFilter}


def build_group_filter(name: str) -> GroupFilter | None:
    """A filter at its beginning; None where every group is kept."""
    make = GROUP_FILTERS[name]
    return make() if make else None
