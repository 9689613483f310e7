"""What the guide stage borrows from the trainer, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from rlvr.config.guidance import GuidanceConfig
from rlvr.rollout.spread import Sampled
from rlvr.types import Rollouts, ScoredRollouts


@dataclass(frozen=True)
class Guided:
    """The rollouts that go on to the advantages, and metrics of all ranks."""

    scored: ScoredRollouts
    metrics: dict[str, float]


class Guide(Protocol):
    """A guide stage."""

    config: GuidanceConfig
    is_off_policy: bool  # whether the loss of some completions conditions on something else than the sampler did

    def __call__(self, scored: ScoredRollouts, step: int) -> Guided:
        """Called by all ranks, after the verification of the rollouts without help; `step` counts those before."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        ...


def rollouts_of(prompts: Sequence[Any], sampled: Sequence[Sampled], columns: dict[str, list[Any]]) -> Rollouts:
    """Completions of prompts that are no part of the batch, each a group of its own, to be verified."""
    return Rollouts(
        group_ids=list(range(len(sampled))),
        prompts=list(prompts),
        completions=[each.completion for each in sampled],
        prompt_ids=[each.context_ids for each in sampled],
        context_ids=[each.context_ids for each in sampled],
        completion_ids=[each.completion_ids for each in sampled],
        generated_masks=[each.generated_mask for each in sampled],
        sampling_logprobs=None,
        truncated=[each.truncated for each in sampled],
        columns=columns,
    )


def columns_of(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows of one data set, column by column."""
    names = rows[0] if rows else ()
    return {name: [row[name] for row in rows] for name in names}


def encoded(tokenizer: PreTrainedTokenizerBase, max_tokens: int, completion: str) -> list[int] | None:
    """The tokens of a completion and its end; None if they are more than `max_tokens`, which may be sampled."""
    ids: list[int] = tokenizer(completion, add_special_tokens=False)["input_ids"]
    ids = [*ids, tokenizer.eos_token_id]
    return ids if len(ids) <= max_tokens else None
