"""Completions as a table, and its parquet files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.types import ScoredRollouts


def completions_table(scored: ScoredRollouts, advantages: list[float]) -> dict[str, list[Any]]:
    """One row per completion of this rank: text, verdict, reward components, advantage, length."""
    rollouts, verdicts = scored.rollouts, scored.verdicts
    table: dict[str, list[Any]] = {
        "prompt_id": list(rollouts.group_ids),
        "prompt": [_text(prompt) for prompt in rollouts.prompts],
        "completion": [_text(completion) for completion in rollouts.completions],
        "outcome": list(verdicts.outcomes),
        "reward": list(verdicts.rewards),
        "advantage": list(advantages),
        "num_tokens": [len(ids) for ids in rollouts.completion_ids],
        "truncated": list(rollouts.truncated),
        "hint": list(rollouts.hints),  # None without one
    }
    for index, name in enumerate(verdicts.names):
        table[f"reward/{name}"] = [row[index] for row in verdicts.components]
    return table


def write_completions(table: Mapping[str, Sequence[Any]], folder: Path, step: int) -> Path:
    """Writes `folder/step-000123.parquet`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.parquet"
    pq.write_table(pa.table({"step": [step] * len(table["prompt_id"]), **table}), path)
    return path


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
