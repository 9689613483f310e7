"""Which completions of a run go into the report, and how they are packed."""

import base64
import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.reporting.printable import printable

COLUMNS = ("prompt", "completion", "outcome", "reward", "advantage", "num_tokens", "truncated", "hint")
TOKEN_COLUMNS = ("token_text", "token_logprob", "token_entropy")
TEXTS = ("prompt", "completion", "hint")
READ_AT_MOST = 100_000  # completions of a run
TOKEN_ROWS = 400  # completions of a run with values of their tokens
CLIP_HEAD, CLIP_TAIL = 3000, 2000  # characters of a longer text
CHUNK_ROWS = 500
STEP_FILE = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Completions:
    """Rows in the order in which they should be kept, the first and last step first, then evenly over steps and
    outcomes."""

    rows: Sequence[Mapping[str, Any]]
    total: int  # that the run recorded
    notes: Sequence[str]


def read_completions(folder: Path) -> Completions:
    """The completions of the newest file of every step; of very many, those of evenly spaced steps.

    A column that is missing is None in every row, one that is unknown is left out, a file that cannot be read gets a
    note.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    notes: list[str] = []
    counts: dict[Path, int] = {}
    for path in sorted(folder.glob("step-*.parquet")):
        try:
            counts[path] = pq.ParquetFile(path).metadata.num_rows
        except (pa.ArrowException, OSError):
            notes.append(f"completions/{path.name} cannot be read.")
    total = sum(counts.values())
    rows = []
    for path in _evenly(list(counts), counts):
        try:
            rows += _rows(pq.read_table(path), _step_of(path))
        except (pa.ArrowException, OSError):
            notes.append(f"completions/{path.name} cannot be read.")
    return Completions(_with_few_tokens(_by_priority(rows)), total, tuple(notes))


def _step_of(path: Path) -> int:
    found = STEP_FILE.fullmatch(path.stem)
    return int(found[1]) if found else 0


def _evenly(paths: Sequence[Path], counts: Mapping[Path, int]) -> list[Path]:
    """The first, the last, and evenly spaced ones between, of together about READ_AT_MOST rows."""
    total = sum(counts.values())
    if total <= READ_AT_MOST or len(paths) < 3:
        return list(paths)
    count = max(2, len(paths) * READ_AT_MOST // total)
    places = {round(index * (len(paths) - 1) / (count - 1)) for index in range(count)}
    return [paths[place] for place in sorted(places)]


def _rows(table: Any, step: int) -> list[dict[str, Any]]:
    names = set(table.column_names)
    columns = {name: table[name].to_pylist() if name in names else [None] * len(table) for name in COLUMNS}
    parts = {
        printable(name.removeprefix("reward/")): table[name].to_pylist()
        for name in table.column_names
        if name.startswith("reward/")
    }
    tokens = [table[name].to_pylist() for name in TOKEN_COLUMNS] if names.issuperset(TOKEN_COLUMNS) else None
    rows = []
    for place in range(len(table)):
        row: dict[str, Any] = {name: _plain(values[place]) for name, values in columns.items()}
        for name in TEXTS:
            row[name] = None if row[name] is None else clipped(printable(str(row[name])))
        row |= {"step": step, "place": place, "tokens": None}
        row["parts"] = {name: _plain(values[place]) for name, values in parts.items()}
        if tokens is not None and all(values[place] is not None for values in tokens):
            row["tokens"] = [values[place] for values in tokens]
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """What JSON can say: it has no NaN, and a column of another type is shown as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def clipped(text: str) -> str:
    """Head and tail of a long text, with what is between counted."""
    left_out = len(text) - CLIP_HEAD - CLIP_TAIL
    if left_out <= 0:
        return text
    return f"{text[:CLIP_HEAD]}\n[... {left_out:,} characters left out of this report ...]\n{text[-CLIP_TAIL:]}"


def _by_priority(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of the first and the last step, then the first of every step and outcome, then the second, ..."""
    ends = (rows[0]["step"], rows[-1]["step"]) if rows else ()
    seen: dict[tuple[Any, ...], int] = {}
    ranks = []
    for row in rows:
        stratum = (row["step"], row["outcome"], row["hint"] is not None)
        seen[stratum] = seen.get(stratum, 0) + 1
        ranks.append(0 if row["step"] in ends else seen[stratum])
    order = sorted(range(len(rows)), key=lambda index: (ranks[index], index))
    return [rows[index] for index in order]


def _with_few_tokens(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves values of tokens in TOKEN_ROWS rows at most, and rounds them."""
    having = [row for row in rows if row["tokens"] is not None]
    every = max(1, -(-len(having) // TOKEN_ROWS))
    for index, row in enumerate(having):
        row["tokens"] = _rounded(row["tokens"]) if index % every == 0 else None
    return rows


def _rounded(tokens: Sequence[Sequence[Any]]) -> list[list[Any]]:
    texts, logprobs, entropies = tokens
    numbers = [
        [None if _plain(each) is None else round(each, 2) + 0.0 for each in column] for column in (logprobs, entropies)
    ]
    return [[printable(str(text)) for text in texts], *numbers]


# ---- packing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """What the page unpacks: base64 of gzipped JSON, each the columns of up to CHUNK_ROWS completions."""

    chunks: Sequence[str]
    included: int


def pack(rows: Iterable[Mapping[str, Any]], max_bytes: int) -> Packed:
    """As many of the rows, from the first on, as fit in `max_bytes` of text; the bytes depend on the rows alone."""
    chunks: list[str] = []
    included = used = 0
    waiting = list(rows)
    for first in range(0, len(waiting), CHUNK_ROWS):
        part = waiting[first : first + CHUNK_ROWS]
        chunk = _packed(part)
        if used + len(chunk) > max_bytes:
            break
        chunks.append(chunk)
        included, used = included + len(part), used + len(chunk)
    return Packed(tuple(chunks), included)


def _packed(rows: Sequence[Mapping[str, Any]]) -> str:
    prompts = {prompt: None for row in rows for prompt in (row["prompt"],)}
    numbers = {prompt: index for index, prompt in enumerate(prompts)}
    columns: dict[str, Any] = {
        name: [row.get(name) for row in rows] for name in (*COLUMNS[1:], "step", "place", "parts", "run")
    }
    columns["prompt"] = [numbers[row["prompt"]] for row in rows]
    columns["tokens"] = {index: row["tokens"] for index, row in enumerate(rows) if row["tokens"] is not None}
    text = json.dumps(columns | {"prompts": list(prompts)}, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode("ascii")
