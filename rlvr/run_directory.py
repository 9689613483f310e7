"""The directory of one run: who may write into it, what it records about the run, where to go on from."""

import json
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlvr.config import LoadedRecipe, resolved_yaml
from rlvr.errors import UserError

RECORDED_PACKAGES = ("rlvr", "torch", "trl", "transformers", "accelerate", "peft", "datasets", "deepspeed", "vllm")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
ADAPTER = "adapter_config.json"  # of a policy or checkpoint that is an adapter


def claim(loaded: LoadedRecipe, resume: bool) -> None:
    """Refuses a directory that holds another run, unless it is to be resumed with the same recipe."""
    kept = loaded.output_dir / "recipe.yaml"
    text = resolved_yaml(loaded)
    if not kept.exists():
        if resume:
            raise UserError(f"There is no run to resume in {loaded.output_dir}; start it without --resume.")
        if loaded.output_dir.exists() and any(loaded.output_dir.iterdir()):
            raise UserError(f"{loaded.output_dir} is not empty and holds no run; choose another trainer.output_dir.")
        return
    if not resume:
        raise UserError(
            f"{loaded.output_dir} already holds a run; go on with it by --resume, or choose another trainer.output_dir."
        )
    if (line := _first_difference(kept.read_text(), text)) is not None:
        raise UserError(
            f"{loaded.output_dir} was started with another recipe (first difference: {line}); resume it unchanged."
        )


def _first_difference(kept: str, new: str) -> str | None:
    pairs = zip([*kept.splitlines(), ""], [*new.splitlines(), ""], strict=False)
    return next((f"{old.strip()!r} is now {now.strip()!r}" for old, now in pairs if old != now), None)


def record_start(loaded: LoadedRecipe, num_processes: int) -> None:
    """Writes the resolved recipe and what it runs on. Called on the main process, after `claim`."""
    loaded.output_dir.mkdir(parents=True, exist_ok=True)
    (loaded.output_dir / "recipe.yaml").write_text(resolved_yaml(loaded))
    facts: dict[str, Any] = {
        "recipe": str(loaded.path),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "num_processes": num_processes,
        "versions": {name: found for name in RECORDED_PACKAGES if (found := installed_version(name))},
        "seed": loaded.trainer["seed"],
    }
    (loaded.output_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def newest_checkpoint(run_dir: Path) -> Path | None:
    found = [(int(m[1]), path) for path in run_dir.iterdir() if (m := CHECKPOINT.fullmatch(path.name))]
    return max(found)[1] if found else None
