"""Records of the step by rows: some of them taken out, and put back changed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from rlvr.rollout.spread import Sampled
from rlvr.types import Rollouts
from rlvr.verification import Verdicts

Record = TypeVar("Record", Rollouts, Verdicts)


def take(record: Record, rows: Sequence[int]) -> Record:
    """The record of these rows alone."""

    def chosen(value: Any) -> Any:
        if isinstance(value, list):
            return [value[row] for row in rows]
        return {name: chosen(column) for name, column in value.items()} if isinstance(value, dict) else value

    return replace(record, **{field.name: chosen(getattr(record, field.name)) for field in fields(record)})


def put(record: Record, rows: Sequence[int], changed: Record) -> Record:
    """The record with the rows of `changed` in place of `rows`."""

    def mixed(old: Any, new: Any) -> Any:
        if isinstance(old, list):
            places = dict(zip(rows, new, strict=True))
            return [places.get(row, value) for row, value in enumerate(old)]
        return {name: mixed(old[name], new[name]) for name in old} if isinstance(old, dict) else old

    both = {field.name: (getattr(record, field.name), getattr(changed, field.name)) for field in fields(record)}
    return replace(record, **{name: mixed(old, new) for name, (old, new) in both.items()})


def with_completions(rollouts: Rollouts, sampled: Mapping[int, Sampled]) -> Rollouts:
    """The rollouts with other completions, and the contexts they come from, at the rows that `sampled` names."""
    rows = sorted(sampled)
    new = [sampled[row] for row in rows]
    # No engine drew the answers of a teacher.
    reported = [each.sampling_logprobs or [float("nan")] * len(each.completion_ids) for each in new]
    changed = replace(
        take(rollouts, rows),
        completions=[each.completion for each in new],
        context_ids=[each.context_ids for each in new],
        completion_ids=[each.completion_ids for each in new],
        generated_masks=[each.generated_mask for each in new],
        sampling_logprobs=None if rollouts.sampling_logprobs is None else reported,
        truncated=[each.truncated for each in new],
        loss_context_ids=[each.context_ids for each in new],
    )
    return put(rollouts, rows, changed)
