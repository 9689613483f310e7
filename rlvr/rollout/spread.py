"""Sampling of prompts that belong to no batch: whoever has them, all ranks share the work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlvr.types import Rollouts


@dataclass(frozen=True)
class Sampled:
    """One completion, as a row of `Rollouts` holds it."""

    context_ids: list[int]
    completion_ids: list[int]
    completion: Any  # decoded: text or messages
    generated_mask: list[bool]
    sampling_logprobs: list[float] | None
    truncated: bool


def entries(rollouts: Rollouts) -> list[Sampled]:
    """The rows of a record one by one."""
    nothing: list[list[float] | None] = [None] * len(rollouts.group_ids)
    columns = (
        rollouts.context_ids,
        rollouts.completion_ids,
        rollouts.completions,
        rollouts.generated_masks,
        rollouts.sampling_logprobs or nothing,
        rollouts.truncated,
    )
    return [Sampled(*row) for row in zip(*columns, strict=True)]


def sample_together(
    prompts: Sequence[Any], sample: Callable[[list[Any]], list[Sampled]], accelerator: Accelerator
) -> list[Sampled]:
    """A completion of each of this rank's prompts. All ranks call it, with any number of prompts.

    `sample` is called with equally many prompts on every rank, as sharded weights are gathered by all together; it is
    not called where no rank has a prompt.
    """
    counts = gather_object([len(prompts)])
    everyones = gather_object(list(prompts))
    if not everyones:
        return []
    ranks, rank = accelerator.num_processes, accelerator.process_index
    share = -(-len(everyones) // ranks)
    padded = everyones + [everyones[0]] * (share * ranks - len(everyones))
    sampled = gather_object(sample(padded[rank * share : (rank + 1) * share]))
    first = sum(counts[:rank])
    return sampled[first : first + len(prompts)]
