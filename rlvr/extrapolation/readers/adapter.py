"""LoRA adapters of PEFT: a base checkpoint with the change that the adapter makes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr.config.problems import shown
from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import Source, num_rows, read_json
from rlvr.extrapolation.readers.safetensor_files import read_safetensors
from rlvr.extrapolation.view import TensorInfo, WeightView

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?")
# Settings that say where an adapter came from or how it is trained, or that are taken into account here. Any other
# one that is set may change what the adapter means.
READ_SETTINGS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Other ways to start change the base's weights too.
STARTS = (True, False, "gaussian", "eva", "orthogonal")
BLOCK_ROWS = 256  # rows of a product that are computed together


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one tensor: `scale` B A, or its transpose."""

    a: str
    b: str
    scale: float
    transposed: bool


class MergedTensors:
    """The base's tensors; where the adapter changes one, it is float32, the sum computed in it."""

    def __init__(
        self, base: WeightView, adapter: Source, changes: Mapping[str, Change], copies: Mapping[str, str]
    ) -> None:
        self._base, self._adapter, self._changes, self._copies = base, adapter, changes, copies
        self.shared = base.aliases()
        self.infos = {name: self._info(name) for name in base.names()}

    def _info(self, name: str) -> TensorInfo:
        info = self._adapter.infos[self._copies[name]] if name in self._copies else self._base.info(name)
        return TensorInfo(info.shape, torch.float32) if name in self._changes else info

    def rows(self, name: str, first: int, last: int) -> Tensor:
        copy = self._copies.get(name)
        values = self._base.read(name, first, last) if copy is None else self._adapter.rows(copy, first, last)
        if name not in self._changes:
            return values
        values = values.float()
        factor, whole = self._factors(self._changes[name])
        # By blocks that lie the same whatever rows are asked for, so that a row has the same bits each time.
        for start in range(first // BLOCK_ROWS * BLOCK_ROWS, last, BLOCK_ROWS):
            block = factor[start : start + BLOCK_ROWS] @ whole
            low, high = max(first, start), min(last, start + len(block))
            values[low - first : high - first] += block[low - start : high - start] * self._changes[name].scale
        return values

    def _factors(self, change: Change) -> tuple[Tensor, Tensor]:
        """The two of which the product is what is added, but for the scale; the first has its rows."""
        a, b = (_whole(self._adapter, part).float() for part in (change.a, change.b))
        return (a.T.contiguous(), b.T.contiguous()) if change.transposed else (b, a)


def _whole(source: Source, name: str) -> Tensor:
    return source.rows(name, 0, num_rows(source.infos[name]))


def read_adapter(folder: Path, base: WeightView) -> MergedTensors:
    """A base with the adapter of a folder merged into it; of both, only sizes are read.

    The scale is lora_alpha / r, by root of r with use_rslora, and by the patterns of both. Whole copies of modules
    (modules_to_save, or embeddings that PEFT saves with their change) take the place of the base's. Raises
    CheckpointError for other kinds of adapters, for settings that change more than this, and where adapter and base do
    not belong together.
    """
    config = read_json(folder / CONFIG)
    _check_settings(folder / CONFIG, config)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS} is missing; copy it, or save the adapter anew as safetensors")
    adapter = read_safetensors(folder / WEIGHTS)
    parts: dict[tuple[str, bool], dict[str, str]] = {}
    copies: dict[str, str] = {}
    for stored in adapter.infos:
        name = stored.removeprefix(PREFIX)
        if match := PART.fullmatch(name):
            parts.setdefault((match[1], match[2] is not None), {})[match[3]] = stored
        else:
            copies[name.replace(".base_layer.", ".")] = stored
    changes = {}
    for (module, embedding), found in parts.items():
        _check_target(folder, base, f"{module}.weight")
        changes[f"{module}.weight"] = _change(folder, adapter, base, module, embedding, found, config)
    for name, stored in copies.items():
        _check_target(folder, base, name)
        if adapter.infos[stored].shape != base.info(name).shape:
            raise CheckpointError(
                f"{folder / WEIGHTS} has {name!r} in the shape {adapter.infos[stored].shape}, its base"
                f" {base.info(name).shape}; merge them with PEFT's merge_and_unload and give the saved model"
            )
    return MergedTensors(base, adapter, changes, copies)


def _check_settings(path: Path, config: Mapping[str, Any]) -> None:
    remedy = "merge it with PEFT's merge_and_unload and give the saved model"
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type {shown(config.get('peft_type'))} is not read, only LORA; {remedy}")
    changed = {name: value for name, value in config.items() if name not in READ_SETTINGS and value}
    if config.get("bias", "none") != "none":
        changed["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in STARTS:
        changed["init_lora_weights"] = config["init_lora_weights"]
    for name, value in changed.items():
        raise CheckpointError(f"{path}: an adapter with {name}: {shown(value)} is not read; {remedy}")


def _check_target(folder: Path, base: WeightView, name: str) -> None:
    """Raises CheckpointError unless the base has this tensor, and for itself."""
    if name not in (*base.names(), *base.aliases()):
        raise CheckpointError(
            f"{folder / WEIGHTS} changes {name!r}, which its base {base.path} does not have; give the base it was"
            " trained on"
        )
    if name in base.aliases() or name in base.aliases().values():
        raise CheckpointError(
            f"{folder / WEIGHTS} changes {name!r}, which is tied in its base {base.path}, and so unties it; untie the"
            " base, merge the adapter with PEFT's merge_and_unload and give the saved model"
        )


def _change(
    folder: Path,
    adapter: Source,
    base: WeightView,
    module: str,
    embedding: bool,
    parts: Mapping[str, str],
    config: Mapping[str, Any],
) -> Change:
    if set(parts) != {"A", "B"}:
        raise CheckpointError(f"{folder / WEIGHTS} has only one of lora_A and lora_B of {module!r}; save it anew")
    a, b = (adapter.infos[parts[part]].shape for part in "AB")
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    expected = base.info(f"{module}.weight").shape
    if (
        len(a) != 2
        or len(b) != 2
        or a[0] != b[1]
        or (a[1] if transposed else b[0], b[0] if transposed else a[1]) != expected
    ):
        raise CheckpointError(
            f"{folder / WEIGHTS} has A {a} and B {b} for {module!r}, which do not make a change of the shape {expected}"
            f" that its base {base.path} has; give the base it was trained on"
        )
    rank = a[0]
    alpha = _alpha(folder / CONFIG, module, config)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Change(parts["A"], parts["B"], scale, transposed)


def _alpha(path: Path, module: str, config: Mapping[str, Any]) -> float:
    """By the first pattern that the end of the module's name matches, as PEFT chooses it; or else that of them all."""
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    try:
        matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(matching, config.get("lora_alpha"))
    except re.error as error:
        raise CheckpointError(f"{path}: alpha_pattern has no valid pattern ({error}); mend it") from error
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(f"{path}: lora_alpha of {module!r} is {shown(alpha)}; it must be a number")
    return alpha
