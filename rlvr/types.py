"""The records that the stages of a step hand to one another.

Legend of shapes: B completions on this rank, b rows of a micro-batch, P prompt tokens, T completion tokens, L = P + T.
Ragged data stays in lists until a micro-batch is made, so that each one is only as wide as its own longest row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.regularizers.base import Prepared
from rlvr.ops.support import Support
from rlvr.ops.token_stats import TokenStats
from rlvr.verification import Verdicts


@dataclass(frozen=True)
class OffPolicy:
    """How a completion counts that the policy, given the loss's context, did not sample.

    Its probability ratio r is not clipped but shaped, f(r) = r / (r + gamma).
    """

    gamma: float | None = None  # None: a quantile of the ratios of all such completions of the generation batch
    is_certain: bool = False  # the sampler's probabilities count as 1, as those of a teacher are not known


@dataclass(frozen=True)
class Rollouts:
    """Prompts and sampled completions of this rank, before scoring. Every list has one entry per completion.

    Without help the loss conditions on what the sampler did, and the last three lists need not be given.
    """

    group_ids: list[int]  # completions of one prompt share an id, wherever they are
    prompts: list[Any]  # as the data set holds them: text or messages
    completions: list[Any]  # decoded: text or messages
    prompt_ids: list[list[int]]  # hint-free prompt
    context_ids: list[list[int]]  # what the sampler was conditioned on
    completion_ids: list[list[int]]  # up to and including EOS
    generated_masks: list[list[bool]]  # False on tokens the policy did not write (tool results)
    sampling_logprobs: list[list[float]] | None  # what the engine reported
    truncated: list[bool]  # stopped by length, not by EOS
    columns: dict[str, list[Any]]  # the other columns of the data set
    loss_context_ids: list[list[int]] = field(default_factory=list)  # what the loss conditions on
    off_policy: list[OffPolicy | None] = field(default_factory=list)
    hints: list[str | None] = field(default_factory=list)  # what the context has beside the prompt

    def __post_init__(self) -> None:
        count = len(self.group_ids)
        for name, neutral in (
            ("loss_context_ids", self.context_ids),
            ("off_policy", [None] * count),
            ("hints", [None] * count),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, neutral)


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with the verdict on each completion."""

    rollouts: Rollouts
    verdicts: Verdicts
    plain: "ScoredRollouts | None" = None  # before prompts made room for others or got help; None: so still

    @property
    def unhelped(self) -> "ScoredRollouts":
        """The rollouts of the prompts that came first, without help, of which alone pass rates may be taken."""
        return self.plain or self


@dataclass(frozen=True)
class TrainRow:
    """One completion as the loss sees it."""

    context_ids: list[int]  # what the loss conditions on
    completion_ids: list[int]
    loss_mask: list[bool]
    advantage: float | Tensor  # of the completion, or [T]
    row_id: int = 0  # its place in the generation batch, over all ranks
    old_logprobs: Tensor | None = None  # [T]
    ref_logprobs: Tensor | None = None  # [T]
    sampling_logprobs: Tensor | None = None  # [T], NaN where the engine gave none
    sampled: TokenStats | None = None  # [T] under the policy that sampled; None when no regulariser asks
    support: Support | None = None  # the tokens that its filter kept
    behaviour_logprobs: Tensor | None = None  # [T] as sampled, where the loss conditions on something else
    gamma: float | None = None  # of its shaped ratio; None: an ordinary ratio

    @property
    def length(self) -> int:
        """Tokens of context and completion."""
        return len(self.context_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Microbatch:
    """One forward and backward pass on one rank; rows are right-padded, with no gap between prompt and completion."""

    input_ids: Tensor  # [b, L]
    attention_mask: Tensor  # [b, L]
    completion_ids: Tensor  # [b, T]
    completion_mask: Tensor  # [b, T] bool
    predictor_index: Tensor  # [b, T] position in L whose hidden state predicts this completion token
    loss_mask: Tensor  # [b, T] bool
    advantages: Tensor  # [b, T]
    row_ids: Tensor  # [b] place in the generation batch, over all ranks
    old_logprobs: Tensor | None  # [b, T]; None when the rollouts come from the current weights
    ref_logprobs: Tensor | None  # [b, T]; None without a KL penalty
    sampling_logprobs: Tensor | None  # [b, T]; None when the trainer's own model samples
    denominator: Denominator
    sampled: TokenStats | None = None  # [b, T] under the policy that sampled; None when no regulariser asks
    supports: list[Support] | None = None  # of each row
    gammas: Tensor | None = None  # [b] of shaped ratios, NaN on rows with an ordinary one; None: no row has one
    behaviour_logprobs: Tensor | None = None  # [b, T] what a shaped ratio divides by, 0 on other rows
    prepared: Mapping[str, Prepared] = field(default_factory=dict)  # by regulariser, cut to [b, T]
