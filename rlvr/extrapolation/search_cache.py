"""What a search has evaluated so far, on the disk: a search that was interrupted goes on from there."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlvr.errors import ExtrapolationError
from rlvr.evaluation.records import PromptRecord
from rlvr.evaluation.sets import SetKind
from rlvr.extrapolation.provenance import write_json

Records = Mapping[str, Sequence[PromptRecord]]  # by set

SETTINGS = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder one of a search with these settings.

    Raises ExtrapolationError where it holds something else, or a search with other settings.
    """
    now = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    if not path.is_file():
        if any(folder.iterdir()):
            raise ExtrapolationError(f"{folder} is not empty and holds no search; choose another --out.")
        _replace(path, now)
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    for name, value in now.items():
        if kept.get(name) != value:
            raise ExtrapolationError(
                f"{folder} holds a search with other {name}; choose another --out, or call it as before."
            )


def keep_records(folder: Path, which: SetKind, alpha: float, records: Records) -> None:
    """The records of an alpha appear under its name at once and complete."""
    content = {"alpha": alpha, "sets": {name: [asdict(each) for each in found] for name, found in records.items()}}
    (folder / which).mkdir(exist_ok=True)
    _replace(folder / which / f"{alpha!r}.json", content)


def kept_records(folder: Path, which: SetKind) -> dict[float, Records]:
    """The records of all alphas that were evaluated, ascending."""
    found = {}
    for path in (folder / which).glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        found[content["alpha"]] = {name: [_record(each) for each in sets] for name, sets in content["sets"].items()}
    return dict(sorted(found.items()))


def _record(fields: Mapping[str, Any]) -> PromptRecord:
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in fields.items()}
    return PromptRecord(**values)


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    write_json(partial, content)
    os.replace(partial, path)
