"""Builds the Rollouts record from what a generation engine returned."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlvr.types import Rollouts

ROW_COLUMNS = ("prompt", "prompt_id")  # stand in fields of their own


def make_rollouts(
    rows: Sequence[Mapping[str, Any]],
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    completions: list[Any],
    *,
    generated_masks: list[list[int]] | None,
    sampling_logprobs: Sequence[Sequence[float | None]] | None,
    end_token_ids: Collection[int],
) -> Rollouts:
    """One entry per row of the data set, which holds each prompt once per wanted completion.

    A token that the engine gives no log-prob, None, gets NaN.
    """
    if generated_masks is None:
        generated_masks = [[1] * len(ids) for ids in completion_ids]
    reported = None if sampling_logprobs is None else [list(map(_known, values)) for values in sampling_logprobs]
    names = [name for name in rows[0] if name not in ROW_COLUMNS]
    return Rollouts(
        group_ids=[row["prompt_id"] for row in rows],
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        prompt_ids=prompt_ids,
        context_ids=prompt_ids,
        completion_ids=completion_ids,
        generated_masks=[[bool(flag) for flag in mask] for mask in generated_masks],
        sampling_logprobs=reported,
        truncated=[ids[-1] not in end_token_ids for ids in completion_ids],
        columns={name: [row[name] for row in rows] for name in names},
    )


def _known(logprob: float | None) -> float:
    return float("nan") if logprob is None else logprob
