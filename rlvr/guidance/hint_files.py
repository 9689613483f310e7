"""Hints and teachers' completions that were written ahead of time: in a column of the training data, or in a file."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlvr.config.problems import nearest, shown
from rlvr.data.sources import READERS
from rlvr.errors import DataError

Hints = dict[int, tuple[str, ...]]  # by prompt_id, the index of the row in the training source; from little to much

SUFFIXES = (".jsonl", ".parquet")
ALL_LEVELS = 0  # stands for the level of a row that has them all

# ---- a column --------------------------------------------------------------------------------------------------------


def hints_of_column(values: Sequence[Any], prompt_ids: Sequence[int], column: str) -> Hints:
    """The texts of a data column as `rlvr.data.build_dataset` stores it, by prompt; blank ones are left out.

    A text is one hint, unless it is JSON text of a list of texts: these are its levels. Where the whole column is JSON
    text, as it is stored once a row holds a list, a JSON string is one hint. Raises DataError for any other value.
    """
    filled = [value for value in values if isinstance(value, str) and value.strip()]
    decoded = [_of_json(value) for value in filled]
    # A text may begin with a bracket by chance; when all the others are JSON as well, it is no chance.
    stored_as_json = all(isinstance(each, str | list | dict) for each in decoded) and any(
        isinstance(each, list | dict) for each in decoded
    )
    hints = {}
    for prompt_id, value in zip(prompt_ids, values, strict=True):
        if value is None:
            continue
        where = f"column {column!r}, row {prompt_id + 1}"
        found = _of_json(value) if isinstance(value, str) else value
        if isinstance(value, str) and not stored_as_json and not _is_texts(found):
            found = value
        if not isinstance(found, str) and not _is_texts(found):
            raise DataError(f"{where}: {shown(found)} is no text; make it one, or a list of texts")
        texts = [found] if isinstance(found, str) else found
        if levels := tuple(_checked(text, where) for text in texts if text.strip()):
            hints[prompt_id] = levels
    return hints


def _of_json(text: str) -> Any:
    """What the text says as JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _checked(text: str, where: str) -> str:
    """The text, which every tokenizer can take. Raises DataError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start + 1} of a text is half a surrogate pair, no character; take it out"
        ) from error
    return text


# ---- a file ----------------------------------------------------------------------------------------------------------


def read_hints(path: Path, prompts: Mapping[int, str], num_rows: int = 0) -> Hints:
    """The hints of a .jsonl or .parquet file, by prompt; blank ones are left out.

    Of the `num_rows` rows of the data's source, those that are not among `prompts`, as they were dropped, may have
    hints too, which are not looked at.

    A row has `prompt_id` and either `hints`, a list of texts from little to much help, or `hint`, a text, with its
    `level` from 1, which may be missing when it is the only one. Where it has a `prompt` too, that must be the text
    that `prompts` has for this id. Raises DataError for what is not so, for ids that `prompts` lacks, and for levels
    that are given twice or left out.
    """
    found: dict[int, dict[int, tuple[int, list[str]]]] = {}  # by prompt and level: the row and its texts
    for number, prompt_id, row in _rows(path, prompts, ("hints", "hint"), num_rows):
        where = f"{path}, row {number}"
        _check_prompt(row.get("prompt"), prompts[prompt_id], f"{where}: `prompt`")
        level, texts = _level_and_texts(row, where)
        earlier = found.setdefault(prompt_id, {})
        if level in earlier or (earlier and ALL_LEVELS in (level, *earlier)):
            first = earlier[level if level in earlier else next(iter(earlier))][0]
            raise DataError(
                f"{where}: prompt_id {prompt_id} has its hint in row {first} already; remove one of the two, or give"
                " each `hint` a `level` of its own"
            )
        earlier[level] = number, texts
    levels = {prompt_id: _in_order(given, prompt_id, path) for prompt_id, given in found.items()}
    return {prompt_id: texts for prompt_id, texts in levels.items() if texts}


def read_completions(path: Path, prompt_ids: Collection[int], num_rows: int = 0) -> dict[int, tuple[str, ...]]:
    """The teacher's completions of a .jsonl or .parquet file, by prompt and in the file's order; blank ones left out.

    `num_rows` as for `read_hints`.

    A row has `prompt_id` and `completion`, a text; several rows may have the same id. Raises DataError for what is not
    so, and for ids that are not among `prompt_ids`.
    """
    found: dict[int, list[str]] = {}
    for number, prompt_id, row in _rows(path, prompt_ids, ("completion",), num_rows):
        texts = _texts([row["completion"]], f"{path}, row {number}: `completion`")
        found.setdefault(prompt_id, []).extend(text for text in texts if text.strip())
    return {prompt_id: tuple(texts) for prompt_id, texts in found.items() if texts}


def write_hints(path: Path, hints: Hints, prompts: Mapping[int, str]) -> None:
    """Writes the .jsonl file that `read_hints` reads, with the prompts, in the order of the ids.

    The file appears at once and whole, in place of an older one. Raises DataError for a name that `read_hints` would
    refuse.
    """
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: hints are written as JSON lines; end the name in .jsonl")
    rows = ({"prompt_id": each, "prompt": prompts[each], "hints": list(hints[each])} for each in sorted(hints))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # ASCII, so that a text with half a surrogate pair can be written too.
        temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="ascii")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(
    path: Path, ids: Collection[int], columns: tuple[str, ...], num_rows: int
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Number from 1, prompt id and columns of each row whose id is in `ids`; each has at least one of `columns`."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} has no known format; the name must end in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; give the path of a file ending in {SUFFIXES[0]}")
    rows = READERS[path.suffix](path, str(path))
    if not rows:
        raise DataError(f"{path} is empty; give it a row for each prompt that is to be helped")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        for wanted in (("prompt_id",), columns):
            if not any(name in row for name in wanted):
                names = " or ".join(f"`{name}`" for name in wanted)
                advice = nearest(wanted[0], row, f"its columns are {', '.join(row)}")
                raise DataError(f"{where} has no column {names}; {advice}")
        prompt_id = _whole(row["prompt_id"], f"{where}: `prompt_id`")
        if prompt_id not in ids and 0 <= prompt_id < num_rows:
            continue
        if prompt_id not in ids:
            raise DataError(
                f"{where}: prompt_id {prompt_id} is none of the {len(ids)} training prompts, which count from 0; remove"
                " the row, or give the file that was made for this data"
            )
        yield number, prompt_id, row


def _check_prompt(given: Any, expected: str, where: str) -> None:
    if given is not None and given != expected:
        raise DataError(
            f"{where} is {shown(given)}, but the training prompt of this id is {shown(expected)}; give the file that"
            " was made for this data and its data.template"
        )


def _level_and_texts(row: Mapping[str, Any], where: str) -> tuple[int, list[str]]:
    """`ALL_LEVELS` and the hints of the row, or its level and its one hint."""
    hints, hint, level = row.get("hints"), row.get("hint"), row.get("level")
    if hints is None:
        number = 1 if level is None else _whole(level, f"{where}: `level`")
        if number < 1:
            raise DataError(f"{where}: `level` is {number}; count levels from 1, from little to much help")
        return number, _texts([hint], f"{where}: `hint`")
    if hint is not None or level is not None:
        other = "level" if hint is None else "hint"
        raise DataError(f"{where} has both `hints` and `{other}`; remove one of them")
    if not isinstance(hints, list):
        raise DataError(f"{where}: `hints` is {shown(hints)}; make it a list of texts, or name the column `hint`")
    return ALL_LEVELS, _texts(hints, f"{where}: `hints`")


def _texts(values: list[Any], where: str) -> list[str]:
    for value in values:
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where} holds {shown(value)}; it must be text")
    return ["" if value is None else _checked(value, where) for value in values]


def _whole(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{where} is {shown(value)}; it must be a whole number")
    return value


def _in_order(given: Mapping[int, tuple[int, list[str]]], prompt_id: int, path: Path) -> tuple[str, ...]:
    """The hints of one prompt that are not blank, from the first level to the last."""
    last = max(given)
    missing = next((level for level in range(1, last) if level not in given), None)
    if ALL_LEVELS not in given and missing is not None:
        raise DataError(
            f"{path}, row {given[last][0]}: prompt_id {prompt_id} has a hint of level {last} but none of level"
            f" {missing}; add it, or number the levels without a gap"
        )
    return tuple(text for level in sorted(given) for text in given[level][1] if text.strip())
