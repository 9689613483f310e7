"""The directory of one run: who may write into it, what it records about the run, where to go on from."""

import json
import os
import platform
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from rlvr.checkpointing import folders
from rlvr.config import LoadedRecipe, load_recipe, resolved_yaml
from rlvr.errors import RecipeError, UserError
from rlvr.files import write_whole

RECORDED_PACKAGES = ("rlvr", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "deepspeed", "vllm")
DECISIVE_PACKAGES = ("torch", "trl", "transformers", "accelerate", "peft", "deepspeed")  # for what a checkpoint means
PLACES = ("trainer.vllm_server_host", "trainer.vllm_server_port")  # where a server is now decides nothing
LOGS = ("metrics.jsonl", "hints.jsonl")  # one record with its step a line
SUMMARY = "train_runtime"  # in the record that ends a run, or a part of it
ADAPTER = "adapter_config.json"  # of a policy or checkpoint that is an adapter


def claim(loaded: LoadedRecipe, resume: bool) -> None:
    """Refuses a directory that cannot be written or holds another run, unless that is resumed with the same recipe."""
    directory = loaded.output_dir
    kept = directory / "recipe.yaml"
    _check_writable(directory)
    if not kept.exists():
        if resume:
            raise UserError(f"There is no run to resume in {directory}; start it without --resume.")
        if directory.exists() and any(not path.name.startswith(".") for path in directory.iterdir()):
            raise UserError(f"{directory} is not empty and holds no run; choose another trainer.output_dir.")
        return
    if not resume:
        raise UserError(
            f"{directory} already holds a run; go on with it by --resume, or choose another trainer.output_dir."
        )
    found = _differences(_recorded(kept), yaml.safe_load(resolved_yaml(loaded)))
    changes = [line for line in found if not line.startswith(PLACES)]
    if changes:
        raise UserError(f"{directory} was started with another recipe; resume it unchanged:\n  " + "\n  ".join(changes))


def _check_writable(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file; choose another trainer.output_dir.")
    if not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise UserError(
            f"{existing} cannot be written to; choose another trainer.output_dir, or change its permissions."
        )


def _recorded(kept: Path) -> Any:
    """The recipe that a run was started with, as this version reads it: settings that are new have their defaults."""
    try:
        return yaml.safe_load(resolved_yaml(load_recipe(kept)))
    except RecipeError as error:
        raise UserError(
            f"The recipe of the run cannot be read ({error}); resume with the version that started it, or mend it."
        ) from error


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """One line for each value that is not the same, by its dotted key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *[key for key in new if key not in old]]:
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{where}.{index}")
    elif old != new:
        yield f"{where}: {old!r} is now {new!r}"


def record_start(loaded: LoadedRecipe, num_processes: int) -> None:
    """Writes the resolved recipe and what it runs on. Called on the main process, after `claim`."""
    write_whole(loaded.output_dir / "recipe.yaml", resolved_yaml(loaded))  # first, as it makes the directory a run's
    facts: dict[str, Any] = {
        "recipe": str(loaded.path),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "num_processes": num_processes,
        "versions": versions(),
        "seed": loaded.trainer["seed"],
    }
    write_whole(loaded.output_dir / "run.json", json.dumps(facts, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Those of the packages that decide what a run does, of the ones that are installed."""
    return {name: found for name in RECORDED_PACKAGES if (found := installed_version(name))}


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def tracker_id(directory: Path) -> str:
    """The run's name at a tracker, so that a resumed run goes on with the same curves."""
    return uuid.uuid5(uuid.NAMESPACE_URL, str(directory.resolve())).hex[:12]


# ---- going on -------------------------------------------------------------------------------------------------------


def check_same_setting(checkpoint: Path, num_processes: int, engine: str, other_versions: bool) -> None:
    """Refuses a checkpoint that cannot be gone on from exactly. With `other_versions` those of packages may differ."""
    facts = folders.read_marker(checkpoint)
    if facts["num_processes"] != num_processes:
        raise UserError(
            f"{checkpoint} was written by {facts['num_processes']} processes and this is a run of {num_processes},"
            f" which would sample other completions; start {facts['num_processes']}, or begin a new run with model.path"
            " set to the checkpoint."
        )
    if facts["engine"] != engine:
        raise UserError(
            f"{checkpoint} was written under {facts['engine']} and this run is under {engine}; use the accelerate"
            " config that the run was started with."
        )
    found = versions()
    names = [name for name in DECISIVE_PACKAGES if facts["versions"].get(name) != found.get(name)]
    if names and not other_versions:
        changes = ", ".join(f"{name} {facts['versions'].get(name)} (now {found.get(name)})" for name in names)
        raise UserError(
            f"{checkpoint} was written with {changes}; install what it was written with, or go on all the same, no"
            " longer exactly, with --other-versions."
        )


def rewind(directory: Path, step: int) -> None:
    """Takes what was recorded after that step out of the run's logs, so that no step is there twice."""
    for name in LOGS:
        path = directory / name
        if not path.exists():
            continue
        lines = [line for line in path.read_text().splitlines() if _is_before(line, step)]
        write_whole(path, "".join(f"{line}\n" for line in lines))


def _is_before(line: str, step: int) -> bool:
    """Whether a record belongs to the part that is kept; one that a crash cut short does not."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False
    return int(record["step"]) <= step and SUMMARY not in record
