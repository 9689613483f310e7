"""Reads the checkpoints of a run, a few rows of a tensor at a time, and measures how their weights moved."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor

from rlvr.config.schema import ModelConfig
from rlvr.errors import CheckpointError, ExtrapolationError, UserError
from rlvr.extrapolation.checkpoints import open_checkpoint, run_checkpoints
from rlvr.extrapolation.linearity import (
    kept_weights,
    nearest_to_quantiles,
    step_r_squared,
    window_products,
)
from rlvr.extrapolation.operations import effective_rank
from rlvr.extrapolation.rules import DEFAULT_COPIES
from rlvr.extrapolation.sources import FLOATS, Sources, row_blocks
from rlvr.extrapolation.view import WeightView
from rlvr.model_paths import resolve_model_path
from rlvr.seeds import derived_seed

LEAST_CHECKPOINTS = 3
VALUES_AT_ONCE = 1 << 23  # of all checkpoints together: 64 MB in float64, of which there are a few copies
EXAMPLE_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles of R^2 at which trajectories are shown
SINGULAR = {"norms": "norm", "embeddings": "embed", "head": "head"}  # names for groups of `rules`
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class RunCheckpoints:
    """What a run left of its policy, by step; no two of the same step."""

    steps: tuple[int, ...]
    views: tuple[WeightView, ...]
    base: Path | None  # the folder of the model at step 0, where it could be opened
    left_out: dict[str, str]  # by path, or the recipe's model.path, why


@dataclass(frozen=True)
class SampleRule:
    """Which scalars are looked at, and which of them kept."""

    share: float
    least: int  # scalars of each tensor, where it has as many
    min_range: float
    min_distinct: int
    seed: int


@dataclass(frozen=True)
class Trajectory:
    """One scalar at every checkpoint."""

    label: str
    r2: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class TensorTrace:
    """How one tensor moved."""

    name: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    looked_at: int
    r2: Tensor  # [kept]
    rank: int | None  # effective rank of last - first; None for what is no matrix or did not move
    examples: tuple[Trajectory, ...]


@dataclass(frozen=True)
class WeightTraces:
    """How a model moved: its tensors, and the dot products [T - 1, T - 1] of the moves of all its weights."""

    tensors: tuple[TensorTrace, ...]
    products: Tensor
    not_floats: tuple[str, ...]  # tensors that were not looked at


# ---- which checkpoints -----------------------------------------------------------------------------------------------


def open_run(run_dir: Path, model: ModelConfig | None) -> RunCheckpoints:
    """The complete checkpoints of a run, with the model that it started from as step 0.

    `model` is that of the run's recipe, None where there is none. Of two checkpoints of one step, as a run's last one
    and its policy are, the first that can be opened counts. Raises CheckpointError for a folder without checkpoints,
    and ExtrapolationError for fewer than LEAST_CHECKPOINTS.
    """
    left_out: dict[str, str] = {}
    base = None if model is None else _base_folder(model, left_out)
    start = None if model is None or base is None else _opened(base, None, model.path, left_out)
    found: dict[int, WeightView] = {}
    for step, path in run_checkpoints(run_dir):
        if step not in found and (view := _opened(path, base, str(path), left_out)) is not None:
            found[step] = view
    if start is not None:
        found.setdefault(0, start)
    steps = sorted(found)
    if len(steps) < LEAST_CHECKPOINTS:
        have = f"{len(steps)} checkpoint{'' if len(steps) == 1 else 's'} that can be read"
        reasons = "".join(f"; {reason.rstrip('.')}" for reason in left_out.values())
        raise ExtrapolationError(
            f"{run_dir} has {have}, the base model included, and a line needs {LEAST_CHECKPOINTS} or more; train with a"
            f" smaller trainer.save_steps and a trainer.save_total_limit that keeps them{reasons}"
        )
    return RunCheckpoints(tuple(steps), tuple(found[step] for step in steps), base if start else None, left_out)


def _base_folder(model: ModelConfig, left_out: dict[str, str]) -> Path | None:
    """Where the base model lies on this machine; nothing is downloaded."""
    try:
        folder = Path(resolve_model_path(model.path))
        if not folder.is_dir():
            folder = Path(snapshot_download(model.path, revision=model.revision, local_files_only=True))
    except UserError as error:
        left_out[model.path] = str(error)
    except LocalEntryNotFoundError:
        left_out[model.path] = f"the base model {model.path} is not on this machine"
    else:
        return folder
    return None


def _opened(path: Path, base: Path | None, name: str, left_out: dict[str, str]) -> WeightView | None:
    """None for a checkpoint that is not complete, such as one that was being written when the run was killed."""
    try:
        return open_checkpoint(path, base)
    except CheckpointError as error:
        left_out[name] = str(error)
        return None


# ---- what a tensor is ------------------------------------------------------------------------------------------------


def module_of(name: str) -> str:
    """Such as q_proj, norm, embed or head; biases, of whatever module, are of the type `bias`."""
    for group, patterns in DEFAULT_COPIES:
        if any(fnmatchcase(name.lower(), pattern) for pattern in patterns):
            return SINGULAR[group]
    parts = name.split(".")
    if parts[-1] == "bias":
        return "bias"
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else parts[-1]


def layer_of(name: str) -> int | None:
    """The layer's number; None for what belongs to none, as embeddings."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


# ---- how it moved ----------------------------------------------------------------------------------------------------


def measure_weights(
    run_dir: Path, run: RunCheckpoints, rule: SampleRule, advance: Callable[[int], None]
) -> WeightTraces:
    """One pass over all weights of all checkpoints. In memory are some rows of each, and the move of one matrix.

    `advance` is told the values of a checkpoint that were read. Raises ExtrapolationError for checkpoints that do not
    have the same tensors, and for a tensor with values that are NaN or infinite.
    """
    sources = Sources(run.views)
    measured = [name for name, info in sources.infos.items() if info.dtype in FLOATS and info.numel]
    products = torch.zeros(len(run.steps) - 1, len(run.steps) - 1, dtype=torch.float64)
    traces = []
    for name in measured:
        values, delta = _read(run_dir, sources, name, rule, products, advance)
        traces.append(_trace(name, sources.infos[name].shape, values, delta, run.steps, rule))
    others = tuple(name for name in sources.names if name not in measured)
    return WeightTraces(tuple(traces), products, others)


def sampled_places(name: str, numel: int, rule: SampleRule) -> Tensor:
    """[n] int64, ascending: the scalars of a tensor that are looked at, by its name and the seed alone."""
    count = min(numel, max(rule.least, math.ceil(rule.share * numel)))
    generator = np.random.default_rng(derived_seed(rule.seed, "linearity", name))
    return torch.from_numpy(np.sort(generator.choice(numel, count, replace=False, shuffle=False)).astype(np.int64))


def _read(
    run_dir: Path,
    sources: Sources,
    name: str,
    rule: SampleRule,
    products: Tensor,
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """(sampled values [T, n], last - first of a matrix [m, n] or nothing [0]) in float64; adds to the dot products."""
    info = sources.infos[name]
    places = sampled_places(name, info.numel, rule)
    found, deltas, before = [], [], 0
    for rows in row_blocks(info, VALUES_AT_ONCE // len(sources.views)):
        tensors = sources.read(name, rows)
        if (error := sources.not_finite(name, tensors, f"move that checkpoint out of {run_dir}")) is not None:
            raise error
        values = torch.stack([tensor.reshape(-1).double() for tensor in tensors])
        products += window_products(values)
        here = places[(places >= before) & (places < before + values.shape[1])] - before
        found.append(values[:, here])
        if len(info.shape) == 2:
            deltas.append(values[-1] - values[0])
        before += values.shape[1]
        advance(values.shape[1])
    delta = torch.cat(deltas).view(info.shape) if deltas else torch.empty(0)
    return torch.cat(found, dim=1), delta


def _trace(
    name: str, shape: tuple[int, ...], values: Tensor, delta: Tensor, steps: Sequence[int], rule: SampleRule
) -> TensorTrace:
    kept = values[:, kept_weights(values, rule.min_range, rule.min_distinct)]
    r2 = step_r_squared(kept, steps)
    examples = tuple(
        Trajectory(name, float(r2[place]), tuple(kept[:, place].tolist()))
        for place in nearest_to_quantiles(r2, EXAMPLE_SHARES)
    )
    rank = matrix_rank(delta) if delta.dim() == 2 else None
    return TensorTrace(name, module_of(name), layer_of(name), shape, values.shape[1], r2, rank, examples)


def matrix_rank(delta: Tensor) -> int | None:
    """The effective rank of a move [m, n], as Timber has it; None for a matrix that did not move.

    Singular values below the rounding of the largest, max(m, n) eps s_1, are noise and count as 0.
    """
    values = torch.linalg.svdvals(delta)
    noise = max(delta.shape) * torch.finfo(delta.dtype).eps * values.max()
    values = values[values > noise]
    return effective_rank(values) if len(values) else None
