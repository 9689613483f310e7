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
class Rollouts:
    """Prompts and sampled completions of this rank, before scoring. Every list has one entry per completion."""

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


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with the verdict on each completion."""

    rollouts: Rollouts
    verdicts: Verdicts


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
    prepared: Mapping[str, Prepared] = field(default_factory=dict)  # by regulariser, cut to [b, T]
