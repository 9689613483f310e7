"""`rlvr rewards score`: what one reward says about the completions of a file."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from rewards._item import ItemReward
from rewards._text import text_of
from rlvr.config.schema import RewardFunctionConfig, RewardsConfig
from rlvr.errors import DataError
from rlvr.verification.asking import Answer, Recorded, ask
from rlvr.verification.calling import RewardFunction
from rlvr.verification.checking import jsonl_rows
from rlvr.verification.judging import limits_of
from rlvr.verification.loading import load_reward

CHUNK = 256  # completions between two movements of the progress bar


@dataclass(frozen=True)
class Scores:
    """One answer per row of the file."""

    rows: list[dict[str, Any]]
    answers: list[Answer]


def score_file(
    use: str,
    args: Mapping[str, Any],
    path: Path,
    workers: int | None,
    base_dir: Path,
    progress: Callable[[int, int], None],
) -> Scores:
    """Judges every row of a .jsonl file of `completion` and the columns that the reward takes.

    A reward of whole groups sees all rows at once, others `CHUNK` of them. `progress` gets rows done and rows in all.
    Raises UserError that names what is wrong with the file, the reward or its arguments.
    """
    rows = jsonl_rows(path, "FILE")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("completion"), str | list):
            raise DataError(f"{path}, row {number}: has no `completion`; give its text or messages")
        text_of(row["completion"])
    function = load_reward(use, args, base_dir)
    rewards = RewardsConfig.model_validate({"functions": [use]} | ({} if workers is None else {"workers": workers}))
    judge = Recorded(rewards.workers, limits_of(rewards))
    reward = function.func if isinstance(function, partial) else function
    size = CHUNK if isinstance(reward, ItemReward) else len(rows)
    named = RewardFunction(RewardFunctionConfig(use=use).label, 1.0, function)
    answers: list[Answer] = []
    try:
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            answers += ask(named, [row["completion"] for row in part], part, judge)
            progress(len(answers), len(rows))
    finally:
        judge.close()
    return Scores(rows, answers)


def write_verdicts(scores: Scores, path: Path) -> None:
    """A parquet of row, completion, value, status and reason; there is either the whole file or none."""
    table = pa.table(
        {
            "row": list(range(1, len(scores.rows) + 1)),
            "completion": [_storable(text_of(row["completion"])) for row in scores.rows],
            "value": pa.array([answer.value for answer in scores.answers], pa.float64()),
            "status": [answer.status.value for answer in scores.answers],
            "reason": [_storable(answer.reason) for answer in scores.answers],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def summary_table(name: str, answers: Sequence[Answer], seconds: float) -> Table:
    """Counts per status, the mean of the values, the share without one, and the time."""
    table = Table(title=name)
    table.add_column("what")
    table.add_column("value", justify="right")
    for status, count in sorted(Counter(answer.status.value for answer in answers).items()):
        table.add_row(status, str(count))
    values = [answer.value for answer in answers if answer.value is not None]
    table.add_row("mean value", f"{sum(values) / len(values):.4f}" if values else "-")
    table.add_row("unscorable", f"{1 - len(values) / len(answers):.1%}")
    table.add_row("seconds", f"{seconds:.1f}")
    return table


def _storable(text: str) -> str:
    """Lone surrogates, which no file can hold, as question marks."""
    return text.encode("utf-8", "replace").decode()
