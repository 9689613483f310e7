"""The folders of a run's checkpoints: written aside, renamed when they are whole, and checked before they are used.

RUN/.saving/checkpoint-20/      while it is written
RUN/checkpoint-20/              once every file is on the disk, with `complete.json`, the list of them
RUN/.discarded/checkpoint-10/   on its way out
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvr.files import sync

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MARKER = "complete.json"
SAVING, DISCARDED = ".saving", ".discarded"


@dataclass(frozen=True)
class Found:
    """Where a run can go on, and why not from what is newer: one sentence for each folder that was passed over."""

    newest: Path | None
    skipped: list[str]


def name_of(step: int) -> str:
    """The folder's name, which transformers gives as well."""
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The step in the folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(run_dir: Path, step: int, facts: Mapping[str, Any]) -> Path:
    """Makes what lies in `.saving` the checkpoint of that step, with `facts` in its list of files.

    Every file and folder reaches the disk before the rename, so that a crash of the machine cannot leave a checkpoint
    under its final name that is not whole. A checkpoint of the same step is replaced.
    """
    written, final = run_dir / SAVING / name_of(step), run_dir / name_of(step)
    sizes = {
        str(path.relative_to(written)): path.stat().st_size for path in sorted(written.rglob("*")) if path.is_file()
    }
    marker = {"step": step, **facts, "files": sizes}
    (written / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    for path in (*written.rglob("*"), written):
        sync(path)
    if final.exists():
        discard(final)
    written.rename(final)
    written.parent.rmdir()
    sync(run_dir)
    return final


def discard(checkpoint: Path) -> None:
    """Removes a checkpoint, which is gone under its name before its first file is."""
    aside = checkpoint.parent / DISCARDED / checkpoint.name
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    sync(checkpoint.parent)
    shutil.rmtree(aside.parent)


def remove_leftovers(run_dir: Path) -> None:
    """Removes what a killed run was writing or removing."""
    for name in (SAVING, DISCARDED):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def steps_of(run_dir: Path) -> list[int]:
    """The steps of all checkpoint folders, whole or not, in order."""
    return sorted(int(match[1]) for path in run_dir.iterdir() if (match := CHECKPOINT.fullmatch(path.name)))


def find_newest(run_dir: Path) -> Found:
    """The newest checkpoint that is whole."""
    skipped = []
    for step in reversed(steps_of(run_dir)):
        folder = run_dir / name_of(step)
        if (flaw := flaw_of(folder)) is None:
            return Found(folder, skipped)
        skipped.append(f"{folder} is passed over: {flaw}.")
    return Found(None, skipped)


def flaw_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its list of files; None if it is whole."""
    try:
        marker = read_marker(folder)
        sizes = marker["files"]
    except FileNotFoundError:
        return f"it has no {MARKER}, so it was not written to its end"
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def read_marker(folder: Path) -> dict[str, Any]:
    """What is known of a checkpoint: its step, the facts it was published with, its files and their sizes."""
    found: dict[str, Any] = json.loads((folder / MARKER).read_text())
    return found
