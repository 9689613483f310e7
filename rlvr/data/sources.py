"""Rows from a procedural task, a local file or the Hugging Face Hub."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from rlvr.config.problems import nearest
from rlvr.config.schema import DataSource
from rlvr.errors import DataError

Row = dict[str, Any]

PROCEDURAL = "reasoning_gym://"

# Reasoning-gym makes item i from Random(seed + i), so neighbouring seeds share all items but one. Our seeds are this
# far apart: a data set that is no larger than the distance shares no generator with one of another seed.
SEED_STRIDE = 1_000_000
# Some tasks seed numpy, which takes no more than 32 bits.
MAX_SEED = 2**32 // SEED_STRIDE - 1


def load_rows(source: DataSource, base_dir: Path, where: str) -> list[Row]:
    """The rows of a data source, each with a non-empty `answer`, and with its `question` as `prompt` if it has none.

    `columns` adds our names beside the source's own. Local paths are relative to `base_dir`, then to the working
    directory. `where`, such as "data.train", opens every message. Raises DataError.
    """
    if source.dataset.startswith(PROCEDURAL):
        rows = _procedural_rows(source, where)
    elif "://" in source.dataset:
        scheme = source.dataset.partition("://")[0]
        raise DataError(
            f"{where}: {source.dataset}: unknown scheme {scheme!r}; write {PROCEDURAL}TASK, a Hub id or a path"
        )
    else:
        path = _local_path(source.dataset, base_dir, where)
        rows = _hub_rows(source, where) if path is None else READERS[path.suffix](path, f"{where}: {path}")
    if not rows:
        raise DataError(f"{where}: {source.dataset} is empty; give a source with at least one row")
    if source.limit is not None:
        rows = rows[: source.limit]
    return [_finished(row, source, number, where) for number, row in enumerate(rows, start=1)]


def _finished(row: Row, source: DataSource, number: int, where: str) -> Row:
    for theirs in source.columns.values():
        if theirs not in row:
            advice = nearest(theirs, row, f"its columns are {', '.join(row)}")
            raise DataError(f"{where}: row {number} of {source.dataset} has no column {theirs!r}; {advice}")
    row = row | {ours: row[theirs] for ours, theirs in source.columns.items()}
    if "prompt" not in row and "question" in row:
        row["prompt"] = row["question"]
    # Tasks of reasoning-gym with many right answers name none; their scorers judge by the metadata.
    if not source.dataset.startswith(PROCEDURAL) and _is_blank(row.get("answer")):
        remedy = "fill it in, or name another column with `columns: {answer: ...}`"
        raise DataError(f"{where}: row {number} of {source.dataset} has no `answer`; {remedy}")
    return row


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


# ---- reasoning-gym ---------------------------------------------------------------------------------------------------


def _procedural_rows(source: DataSource, where: str) -> list[Row]:
    """Rows with question, answer, metadata and task, of `reasoning_gym://TASK?seed=1&size=500&param=value`."""
    from reasoning_gym.factory import DATASETS

    task, _, query = source.dataset.removeprefix(PROCEDURAL).partition("?")
    where = f"{where}: {source.dataset}"
    if task not in DATASETS:
        advice = nearest(task, DATASETS, f"tasks are {', '.join(DATASETS)}")
        raise DataError(f"{where}: unknown task {task!r}; {advice}")
    dataset_class, config_class = DATASETS[task]
    parameters = {"seed": 0, "size": 500} | _parameters(query, config_class, where)
    seed, size = parameters["seed"], parameters["size"]
    if not (isinstance(seed, int) and 0 <= seed <= MAX_SEED):
        raise DataError(f"{where}: seed={seed} is not valid; it must be a whole number from 0 to {MAX_SEED}")
    if not 1 <= size <= SEED_STRIDE:
        raise DataError(f"{where}: size={size} is not valid; it must be from 1 to {SEED_STRIDE}")
    num_rows = size if source.limit is None else min(size, source.limit)
    try:
        dataset = dataset_class(config=config_class(**parameters | {"seed": seed * SEED_STRIDE}))
        items = [dataset[index] for index in range(num_rows)]
    except (AssertionError, ValueError, TypeError) as error:  # how tasks refuse a configuration
        raise DataError(f"{where}: the task refuses these parameters ({_first_line(error)}); change them") from error
    return [
        {"question": item["question"], "answer": item["answer"] or "", "metadata": item["metadata"], "task": task}
        for item in items
    ]


def _parameters(query: str, config_class: type, where: str) -> dict[str, Any]:
    types = get_type_hints(config_class)
    names = [field.name for field in fields(config_class)]
    parameters: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        name, equals, text = part.partition("=")
        if not equals:
            raise DataError(f"{where}: parameter {part!r} has no value; write it as {part or 'name'}=value")
        if name not in names:
            advice = nearest(name, names, f"parameters are {', '.join(names)}")
            raise DataError(f"{where}: unknown parameter {name!r}; {advice}")
        if name in parameters:
            raise DataError(f"{where}: parameter {name!r} is given twice; keep one")
        try:
            # Not unquote_plus: a plus sign is a value of `operators`, not a space.
            parameters[name] = _converted(unquote(text), types[name])
        except ValueError as error:
            raise DataError(f"{where}: {name}={text} is not valid; it must be {error}") from error
    return parameters


def _converted(text: str, annotation: Any) -> Any:
    """The text as a value of the annotated type; sequences are comma-separated. Raises ValueError saying what is."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return None if text == "none" else _converted(text, arguments[0])
    if origin is Literal:
        return _chosen(text, {str(value): value for value in arguments})
    if annotation in (list, tuple) or origin in (list, tuple, Sequence):
        element = arguments[0] if arguments else str
        items = [_converted(item, element) for item in text.split(",")]
        return tuple(items) if tuple in (annotation, origin) else items
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _chosen(text, {str(member.value): member for member in annotation})
    if annotation is bool:
        return _chosen(text, {"true": True, "false": False})
    if annotation is str:
        return text
    if annotation not in NUMBERS:
        raise ValueError("left out: a URI cannot hold a value of its type")
    try:
        return annotation(text)
    except ValueError:
        raise ValueError(NUMBERS[annotation]) from None


NUMBERS = {int: "a whole number", float: "a number"}


def _chosen(text: str, values: Mapping[str, Any]) -> Any:
    if text not in values:
        raise ValueError(f"one of {', '.join(values)}")
    return values[text]


# ---- local files -----------------------------------------------------------------------------------------------------


def _local_path(name: str, base_dir: Path, where: str) -> Path | None:
    """The file that is meant; None where the name can only be a Hub id."""
    candidates = [folder / Path(name).expanduser() for folder in (base_dir, Path.cwd())]
    looks_local = name.startswith((".", "/", "~")) or Path(name).suffix in READERS
    # A folder beside the recipe may well be called like a data set on the Hub.
    found = [path for path in candidates if path.is_file() or (looks_local and path.exists())]
    if not found and not looks_local:
        return None
    if not found:
        folders = " or ".join(dict.fromkeys(str(path.parent) for path in candidates))
        folders_there = [path.parent for path in candidates if path.parent.is_dir()]
        siblings = [each.name for folder in folders_there for each in folder.iterdir() if each.suffix in READERS]
        advice = nearest(Path(name).name, siblings, "give the path of a data file")
        raise DataError(f"{where}: {name} does not exist in {folders}; {advice}")
    if not found[0].is_file():
        raise DataError(f"{where}: {found[0]} is a folder; give one file ending in {', '.join(READERS)}")
    if found[0].suffix not in READERS:
        raise DataError(f"{where}: {found[0]} has no known format; the name must end in {', '.join(READERS)}")
    return found[0]


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8 text") from error


def _json_rows(path: Path, where: str) -> list[Row]:
    try:
        content = json.loads(_text(path, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, line {error.lineno}: not valid JSON ({error.msg}); mend that line") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f'{where}: does not hold a list of rows; write [{{...}}, ...] or {{"data": [{{...}}, ...]}}')
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{where}: row {number} is not a JSON object; every row must be one")
    return rows


def _jsonl_rows(path: Path, where: str) -> list[Row]:
    rows = []
    # Not splitlines: JSON strings may hold other line separators than \n unescaped.
    for number, line in enumerate(_text(path, where).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}, line {number}: not valid JSON ({error.msg}); mend that line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}, line {number}: not a JSON object; every line must be one")
        rows.append(row)
    return rows


def _csv_rows(path: Path, where: str) -> list[Row]:
    """Values stay text: inferred types would turn an answer of 007 into 7."""
    reader = csv.DictReader(StringIO(_text(path, where), newline=""), strict=True)
    rows: list[Row] = []
    try:
        for row in reader:
            # None is the key of what a line has too much, and the value of what it lacks.
            if None in row or None in row.values():
                columns = len(reader.fieldnames or ())
                raise DataError(
                    f"{where}, line {reader.line_num}: not {columns} values as in the header; mend that line"
                )
            rows.append(dict(row))
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.reader.line_num}: not valid CSV ({error}); mend that line") from error
    return rows


def _parquet_rows(path: Path, where: str) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: not a readable parquet file ({_first_line(error)}); write it anew") from error
    rows: list[Row] = table.to_pylist()
    return rows


READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
}


# ---- the Hub ---------------------------------------------------------------------------------------------------------


def _hub_rows(source: DataSource, where: str) -> list[Row]:
    import datasets

    subset = f", subset {source.subset!r}" if source.subset else ""
    try:
        dataset = datasets.load_dataset(source.dataset, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{where}: cannot load {source.dataset!r}{subset}, split {source.split!r}, from the Hub"
            f" ({_first_line(error)}); check these names and the connection, or give a {', '.join(READERS)} file"
        ) from error
    num_rows = len(dataset) if source.limit is None else min(len(dataset), source.limit)
    rows: list[Row] = dataset.select(range(num_rows)).to_list()
    return rows


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
