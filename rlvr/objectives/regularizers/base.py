"""What a regulariser may see and what it may change.

Legend: n loss tokens of this rank, b rows of a micro-batch, R rows of an optimiser step on this rank, T completion
tokens. Of an optimiser step a regulariser sees first the tokens of all its micro-batches under the current weights
(`prepare`, before the first backward pass, so that quantiles and means can be those of the whole step on all ranks),
then each micro-batch with gradient (`contribute`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlvr.objectives.aggregation import Denominator
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import LOGPROBS, StatsRequest, TokenStats

Gather = Callable[[Tensor], Tensor]  # [n] of this rank -> the values of all ranks, in the order of ranks


@dataclass(frozen=True)
class Needs:
    """Statistics beside log-probabilities, by pass."""

    sampled: StatsRequest = LOGPROBS  # under the policy that sampled
    step: StatsRequest | None = None  # under the current weights before the step; None: no `prepare`
    live: StatsRequest = LOGPROBS  # in the training pass, with gradient
    support: bool = False  # the kept tokens of the policy that sampled, for `Prepared.support_mask`


@dataclass(frozen=True)
class StepTokens:
    """The tokens of one optimiser step on this rank; padded to one width, everything without gradient."""

    mask: Tensor  # [R, T] bool, loss tokens
    advantages: Tensor  # [R, T]
    current: TokenStats  # [R, T] under the weights that the step starts from
    old_logprobs: Tensor  # [R, T] under the policy that sampled
    sampled: TokenStats  # [R, T] under the policy that sampled
    clipped: Tensor  # [R, T] bool: a bound of the clipped ratio binds
    row_ids: Tensor  # [R] of the generation batch, unique over ranks
    microbatch_ids: Tensor  # [R]
    step: int  # optimiser steps taken before this one
    seed: int  # of the run, the same on all ranks
    gather: Gather

    def everywhere(self, values: Tensor) -> Tensor:
        """The values [R, T] at the loss tokens of all ranks, flat."""
        return self.gather(values[self.mask])


@dataclass(frozen=True)
class Prepared:
    """What a regulariser fixed for one optimiser step."""

    tokens: dict[str, Tensor] = field(default_factory=dict)  # [R, T], later cut to a micro-batch's [b, T]
    scalars: dict[str, float] = field(default_factory=dict)  # the same on all ranks
    support_mask: Tensor | None = None  # [R, T] bool: tokens of which `contribute` wants `LiveTokens.support`
    metrics: dict[str, float] = field(default_factory=dict)  # of all ranks


@dataclass(frozen=True)
class LiveTokens:
    """One micro-batch in the training pass."""

    mask: Tensor  # [b, T] bool, loss tokens
    advantages: Tensor  # [b, T]
    stats: TokenStats  # [b, T] with gradient; `logprobs` are 0 at masked positions
    old_logprobs: Tensor  # [b, T] without gradient, 0 at masked positions
    denominator: Denominator
    aggregation: str
    tokens: Mapping[str, Tensor]  # [b, T], from `Prepared`
    scalars: Mapping[str, float]
    support: SupportLogprobs | None  # of the m tokens of `Prepared.support_mask`, in the order of `mask.nonzero()`
    coef: float  # the coefficient at this step


@dataclass(frozen=True)
class Contribution:
    """What a regulariser does to the loss of a micro-batch: shares of the optimiser step, to be summed."""

    loss: Tensor | None = None  # scalar, coefficient included
    policy_mask: Tensor | None = None  # [b, T] bool; False: the token leaves the policy loss, not the denominators
    metrics: dict[str, Tensor] = field(default_factory=dict)  # scalars, detached


class Regularizer:
    """A term of the loss or a choice of tokens, with whatever it remembers between steps."""

    name: str
    needs = Needs()

    def coef_at(self, step: int) -> float:
        """The coefficient of the optimiser step that follows `step` others; 1 where there is none to set."""
        return 1.0

    def start(self, rollouts: StepTokens) -> None:
        """Sees the first rollouts of a run, under the initial policy; not called after a resume."""

    def prepare(self, tokens: StepTokens) -> Prepared:
        """What is fixed for this step. Called on all ranks when `needs.step` is given."""
        return Prepared()

    def contribute(self, live: LiveTokens) -> Contribution:
        """The share of one micro-batch."""
        raise NotImplementedError

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Sees the metrics of a step that was taken."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from `state_dict`."""


def linear_quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of values [n], n >= 1, linearly interpolated between ranks (0-based rank q (n - 1)).

    torch.quantile does the same for at most 16 million values.
    """
    ordered = values.sort().values
    rank = q * (len(ordered) - 1)
    below = int(rank)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], rank - below)
