"""Opens checkpoints of every kind that a training run or a model hub leaves, and finds those of a run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlvr.checkpointing.folders import CHECKPOINT, name_of, steps_of
from rlvr.errors import CheckpointError, UserError
from rlvr.extrapolation.readers.base import Source, StoredWeights, read_json
from rlvr.extrapolation.readers.ties import check_engine_names, config_of, named
from rlvr.extrapolation.view import WeightView
from rlvr.model_paths import resolve_model_path
from rlvr.run_directory import ADAPTER

POLICY = "policy"
TRAINER_STATE = "trainer_state.json"
ADAPTER_BIN = "adapter_model.bin"
ZERO_FOLDERS, ZERO_LATEST = "global_step*", "latest"
ZERO_FILES = "*_optim_states.pt"
SHARDED_FOLDER, SHARDED_METADATA = "pytorch_model_fsdp_0", ".metadata"
ENGINE_FILE = "pytorch_model_fsdp.bin"
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    ENGINE_FILE,
)


def open_checkpoint(path: Path, base: Path | None = None) -> WeightView:
    """The checkpoint in a folder, or in one file of weights; nothing of it is read but names, shapes and sizes.

    In a folder that several kinds share, the first of these is taken: an adapter, merged into `base` or else into the
    local or built-in model that it names; ZeRO partitions, since the model.safetensors that may lie beside them is
    their fp32 weights rounded to the dtype of training; DCP shards; safetensors; pytorch_model.bin. To have another
    one, give its file. Raises CheckpointError where there is none, and for one that is damaged, incomplete, of a kind
    that is not read, or a pickle that holds more than tensors.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give the folder of a saved model or of a checkpoint of a run")
    if path.is_file():
        return _view(path, path.parent, _of_file(path), of_engine=path.name == ENGINE_FILE)
    if (path / ADAPTER).is_file():
        return _adapter(path, base)
    if (zero := _zero_folder(path)) is not None:
        from rlvr.extrapolation.readers.zero import read_zero

        return _view(path, zero.parent, read_zero(zero), of_engine=True)
    for folder in (path, path / SHARDED_FOLDER):
        if (folder / SHARDED_METADATA).is_file() or (folder.name == SHARDED_FOLDER and folder.is_dir()):
            from rlvr.extrapolation.readers.sharded import read_sharded

            return _view(path, path.parent if folder == path else path, read_sharded(folder), of_engine=True)
    for name in FILES:
        if (path / name).is_file():
            return _view(path, path, _of_file(path / name), of_engine=name == ENGINE_FILE)
    raise _none_in(path)


def run_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """The steps and folders of a run's checkpoints and of its `policy`, by step; the policy is the last of its step.

    Its step is that of the run's last checkpoint, or else of the last line of metrics.jsonl. Raises CheckpointError
    for a folder that has none of them, and for a policy of which nothing says the step.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is no folder; give the trainer.output_dir of a run")
    found = [path for path in run_dir.iterdir() if path.is_dir() and CHECKPOINT.fullmatch(path.name)]
    if (run_dir / POLICY).is_dir():
        found.append(run_dir / POLICY)
    if not found:
        raise CheckpointError(f"{run_dir} has no checkpoint-N and no {POLICY}; give the trainer.output_dir of a run")
    steps = []
    for path in found:
        step = _step(path)
        if step is None:
            raise CheckpointError(f"nothing says of which step {path} is; put a {TRAINER_STATE} into it")
        steps.append((step, path.name == POLICY, path))
    return [(step, path) for step, _, path in sorted(steps)]


def model_of_run(run_dir: Path) -> Path | None:
    """The model that a run began from, by its recipe; None where that is no folder of this machine."""
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        return None
    try:
        found = Path(resolve_model_path(yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]["path"]))
    except (yaml.YAMLError, LookupError, TypeError, UserError):
        return None
    return found if found.is_dir() else None


def _view(path: Path, home: Path, source: Source, of_engine: bool = False) -> WeightView:
    """The view of a source whose config.json and trainer_state.json lie in `home`."""
    # A sharded checkpoint has no config.json; that of the run's policy is the same.
    config = config_of((home, home.parent / POLICY) if CHECKPOINT.fullmatch(home.name) else (home,))
    if of_engine:
        check_engine_names(path, source, config)
    stored, tied = named(source, config)
    return StoredWeights(path, _step(home), source, stored, tied)


def _of_file(path: Path) -> Source:
    from rlvr.extrapolation.readers import bin_files, safetensor_files

    readers: Mapping[str, Callable[[Path], Source]] = {
        ".safetensors": safetensor_files.read_safetensors,
        ".safetensors.index.json": safetensor_files.read_safetensors_index,
        ".bin": bin_files.read_bin,
        ".bin.index.json": bin_files.read_bin_index,
    }
    reader = next((reader for suffix, reader in readers.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise CheckpointError(f"{path} has no known format; give a folder, or a file ending in {', '.join(readers)}")
    return reader(path)


def _zero_folder(path: Path) -> Path | None:
    """Where the files of the ranks of a ZeRO checkpoint are; None where it is not one."""
    if any(path.glob(ZERO_FILES)):
        return path
    folders = sorted(each for each in path.glob(ZERO_FOLDERS) if each.is_dir())
    if (path / ZERO_LATEST).is_file():
        tag = (path / ZERO_LATEST).read_text(encoding="utf-8", errors="replace").strip()
        named_folder = next((each for each in path.iterdir() if each.name == tag and each.is_dir()), None)
        if named_folder is None:
            raise CheckpointError(
                f"{path / ZERO_LATEST} names the folder {tag!r}, which is not there; copy it, or give the"
                " model.safetensors of the same step"
            )
        return named_folder
    if len(folders) > 1:
        names = ", ".join(each.name for each in folders)
        raise CheckpointError(f"{path} has several ZeRO checkpoints, {names}, and no {ZERO_LATEST}; give one of them")
    return folders[0] if folders else None


def _adapter(path: Path, base: Path | None) -> WeightView:
    from rlvr.extrapolation.readers.adapter import read_adapter

    found = base or named_base(path)
    if (found / ADAPTER).is_file():
        raise CheckpointError(f"{path} is an adapter of the adapter {found}; merge that one and give the saved model")
    under = open_checkpoint(found)
    source = read_adapter(path, under)
    return StoredWeights(path, _step(path), source, {name: name for name in source.infos}, source.shared)


def named_base(path: Path) -> Path:
    """The base that an adapter names. Raises CheckpointError where that is no folder of this machine."""
    given = read_json(path / ADAPTER).get("base_model_name_or_path")
    remedy = "give the folder of its base model"
    if not isinstance(given, str) or not given:
        raise CheckpointError(f"{path / ADAPTER} names no base_model_name_or_path; {remedy}")
    try:
        found = Path(resolve_model_path(given))
    except UserError as error:
        raise CheckpointError(f"{path / ADAPTER} names the base {given!r}, which is not usable; {remedy}") from error
    if not found.is_dir():
        raise CheckpointError(f"{path / ADAPTER} names the base {given!r}, which is no local folder; {remedy}")
    return found


def _none_in(path: Path) -> CheckpointError:
    looked_for = ", ".join((ADAPTER, f"{ZERO_FOLDERS}/", f"{SHARDED_FOLDER}/", *FILES))
    inside = sorted(each.name for each in path.iterdir() if each.name == POLICY or CHECKPOINT.fullmatch(each.name))
    remedy = f"give one of its {', '.join(inside)}" if inside else "give the folder of a saved model"
    return CheckpointError(f"{path} holds no checkpoint, as there is none of {looked_for}; {remedy}")


def _step(home: Path) -> int | None:
    """The optimiser steps that a checkpoint had, by what lies in its folder or, of a run's policy, beside it."""
    if (home / TRAINER_STATE).is_file():
        return _global_step(home / TRAINER_STATE)
    if match := CHECKPOINT.fullmatch(home.name):
        return int(match[1])
    if home.name != POLICY:
        return None
    run_dir = home.resolve().parent
    if (run_dir / TRAINER_STATE).is_file():
        return _global_step(run_dir / TRAINER_STATE)
    steps = steps_of(run_dir)
    return _step(run_dir / name_of(steps[-1])) if steps else _last_logged(run_dir / "metrics.jsonl")


def _global_step(path: Path) -> int:
    step: Any = read_json(path).get("global_step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise CheckpointError(f"{path} has no `global_step`, a whole number; copy it again from the run")
    return step


def _last_logged(path: Path) -> int | None:
    """The step of the last line of a run's metrics."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        steps = [json.loads(line)["step"] for line in lines[-1:]]
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} ends in a line that is no record of a step; remove that line") from error
    return steps[0] if steps and isinstance(steps[0], int) else None
