"""Checkpoints of DeepSpeed ZeRO, stages 1 to 3: the fp32 master weights, spread over the files of the ranks.

Each rank's optimiser file holds its partition of the flat parameters. Of stages 1 and 2, each parameter group is one
vector, cut among the ranks. Of stage 3, each parameter is cut among them, and a rank's vector joins its pieces. What is
not trained lies in the model files, whole before stage 3 and cut with it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import num_rows
from rlvr.extrapolation.readers.pickles import Inert, MappedFiles, copied_rows, info_of, is_plain, load_mapped
from rlvr.extrapolation.view import TensorInfo

OPTIMIZER_FILE = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
MODEL_FILE = re.compile(r"(?:bf16_)?(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
# Objects of DeepSpeed in the optimiser files. Nothing of it is run, nor need it be installed.
STAND_INS: Mapping[str, Any] = {
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum": Inert,
    "deepspeed.utils.tensor_fragment.fragment_address": Inert,
    "deepspeed.runtime.fp16.loss_scaler.LossScaler": Inert,
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler": Inert,
}
WHOLE = "save the checkpoint anew, or give the model.safetensors of the same step"


@dataclass(frozen=True)
class Piece:
    """A run of a tensor's values, and where a rank's file has them."""

    start: int  # in the tensor, its values in one row
    rank: int
    group: int | str  # of the rank's flat groups; or the frozen parameter
    offset: int
    length: int


class ZeroPartitions:
    """The tensors of a ZeRO checkpoint; the files of the ranks are mapped while pieces are copied from them."""

    def __init__(self, ranks: "Ranks", infos: Mapping[str, TensorInfo], shared: Mapping[str, str]) -> None:
        self.infos, self.shared, self._ranks = infos, shared, ranks

    def rows(self, name: str, first: int, last: int) -> Tensor:
        info = self.infos[name]
        pieces = self._ranks.pieces.get(name)
        if pieces is None:  # a buffer
            return copied_rows(self._ranks.model_states(0)["module"][name], first, last)
        row = info.numel // max(num_rows(info), 1)
        start, stop = first * row, last * row
        values = torch.empty(stop - start, dtype=info.dtype)
        for piece in pieces:
            begin, end = max(start, piece.start), min(stop, piece.start + piece.length)
            if begin < end:
                stored = self._ranks.stored(piece, (end - begin) * info.dtype.itemsize)
                values[begin - start : end - start] = stored[piece.offset + begin - piece.start :][: end - begin]
        return values.view(last - first, *info.shape[1:]) if info.shape else values.view(())


class Ranks:
    """The files of the ranks, and which pieces of which parameters each holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.optimizer_files = _by_rank(folder, OPTIMIZER_FILE)
        self.model_files = _by_rank(folder, MODEL_FILE)
        self.pieces: dict[str, list[Piece]] = {}
        self._mapped: MappedFiles[Any] = MappedFiles(lambda path: load_mapped(path, STAND_INS))
        if not self.optimizer_files or not self.model_files:
            which = "model" if self.optimizer_files else "optim"
            raise CheckpointError(f"{folder} has no *_{which}_states.pt of any rank; copy them, or {WHOLE}")
        states = self.optimizer_states(min(self.optimizer_files))
        if "zero_stage" not in states:
            raise CheckpointError(f"{folder} was not written by ZeRO, whose partitions are read; {WHOLE}")
        self.stage = int(states["zero_stage"])
        counts = states["partition_count"]
        self.world = max(counts) if isinstance(counts, list) else int(counts)
        if isinstance(counts, list) and len(set(counts)) > 1:
            raise CheckpointError(f"{folder} has groups cut among {counts} ranks each, which is not read; {WHOLE}")
        self._check_complete()

    def _check_complete(self) -> None:
        """Raises CheckpointError unless there is a file of each rank, and of no other."""
        of_models = self.world if self.stage == 3 else 1
        for files, kind, count in ((self.optimizer_files, "optim", self.world), (self.model_files, "model", of_models)):
            if missing := [str(rank) for rank in range(count) if rank not in files]:
                raise CheckpointError(
                    f"{self.folder} lacks the *_{kind}_states.pt of rank {', '.join(missing)}, of {count}; copy what is"
                    f" missing, or {WHOLE}"
                )
            if extra := [path for rank, path in files.items() if rank >= count]:
                raise CheckpointError(f"{extra[0]} is of none of the {count} ranks of this run; remove it")

    def optimizer_states(self, rank: int, to_copy: int = 0) -> Mapping[str, Any]:
        """Of a rank, mapped. Raises CheckpointError for a file that is damaged or of another kind."""
        path = self.optimizer_files[rank]
        content = self._mapped.content(path, to_copy)
        found = content.get("optimizer_state_dict") if isinstance(content, dict) else None
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} has no `optimizer_state_dict`, as the files of DeepSpeed do; {WHOLE}")
        return found

    def model_states(self, rank: int, to_copy: int = 0) -> Mapping[str, Any]:
        """Of a rank, mapped; before stage 3 there is one for all."""
        path = self.model_files[rank]
        states = self._mapped.content(path, to_copy)
        wanted = ("module", "param_shapes", "buffer_names", "shared_params")
        if not isinstance(states, dict) or any(states.get(name) is None for name in wanted):
            raise CheckpointError(f"{path} does not say how ZeRO cut the parameters; {WHOLE}")
        return states

    def groups(self, rank: int, to_copy: int = 0) -> list[Tensor]:
        """The rank's partitions of the fp32 parameters, flat and mapped."""
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        found = self.optimizer_states(rank, to_copy).get(key)
        if not isinstance(found, list) or not all(is_plain(each) and each.dim() == 1 for each in found):
            raise CheckpointError(f"{self.optimizer_files[rank]} has no `{key}`, the fp32 partitions; {WHOLE}")
        return found

    def stored(self, piece: Piece, to_copy: int) -> Tensor:
        """The flat tensor that a piece lies in, mapped."""
        if isinstance(piece.group, str):
            fragment: Tensor = self.model_states(piece.rank, to_copy)["frozen_param_fragments"][piece.group]
            return fragment.reshape(-1)
        return self.groups(piece.rank, to_copy)[piece.group]


def _by_rank(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            rank, model_part = int(match[1] or 0), int(match[2])
            if model_part:
                raise CheckpointError(f"{path} is of a model cut by tensor parallelism, which is not read; {WHOLE}")
            if rank in found:
                raise CheckpointError(f"{found[rank]} and {path.name} are of the same rank; remove the older one")
            found[rank] = path
    return found


def read_zero(folder: Path) -> ZeroPartitions:
    """The folder global_stepN of a checkpoint, of which only sizes are read.

    Trained parameters are the fp32 master weights; frozen ones and buffers have the dtype they were kept in. Raises
    CheckpointError for missing, surplus or damaged files of ranks, and where the partitions are not of the sizes that
    the parameters need.
    """
    ranks = Ranks(folder)
    states = ranks.model_states(0)
    infos: dict[str, TensorInfo] = {}
    groups: Sequence[Mapping[str, Sequence[int]]] = states["param_shapes"]
    for name, shape in ((name, shape) for group in groups for name, shape in group.items()):
        if name in infos:
            raise CheckpointError(f"{folder} has {name!r} in two parameter groups; {WHOLE}")
        infos[name] = TensorInfo(tuple(shape), torch.float32)
    ranks.pieces |= _pieces_by_tensor(ranks, groups) if ranks.stage == 3 else _pieces_by_group(ranks, groups)
    infos |= _frozen(ranks, states)
    buffers = [name for name in states["buffer_names"] if name in states["module"]]
    infos |= {name: info_of(states["module"][name]) for name in buffers}
    shared = {name: kept for name, kept in states["shared_params"].items() if name not in infos and kept in infos}
    ordered = [name for name in states["module"] if name in infos]  # as the model has them
    ordered += [name for name in infos if name not in states["module"]]
    return ZeroPartitions(ranks, {name: infos[name] for name in ordered}, shared)


def _pieces_by_group(ranks: Ranks, groups: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[Piece]]:
    """Stages 1 and 2: the ranks' partitions, one after the other, are the group's parameters one after the other."""
    sizes = [[part.numel() for part in ranks.groups(rank)] for rank in range(ranks.world)]
    gaps = ranks.optimizer_states(0).get("param_alignment_paddings")
    pieces: dict[str, list[Piece]] = {}
    for group, shapes in enumerate(groups):
        parts = [each[group] if group < len(each) else 0 for each in sizes]
        offset = 0
        for index, (name, shape) in enumerate(shapes.items()):
            numel = torch.Size(shape).numel()
            pieces[name] = list(_cut(parts, group, offset, numel))
            offset += numel + (gaps[group][index] if gaps else 0)
        # The last partition is filled up to a multiple of twice the number of ranks, or not.
        if not offset <= sum(parts) <= -(-offset // (2 * ranks.world)) * 2 * ranks.world:
            raise _misfit(ranks, offset, sum(parts))
    return pieces


def _cut(parts: Sequence[int], group: int, offset: int, numel: int) -> Iterator[Piece]:
    """Where values `offset` to `offset + numel` of the joined parts lie."""
    begin = 0
    for rank, size in enumerate(parts):
        low, high = max(offset, begin), min(offset + numel, begin + size)
        if low < high:
            yield Piece(low - offset, rank, group, low - begin, high - low)
        begin += size


def _pieces_by_tensor(ranks: Ranks, groups: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, list[Piece]]:
    """Stage 3: each rank has an equal piece of each parameter, the last ones filled up."""
    shapes = {name: shape for group in groups for name, shape in group.items()}
    shares = {name: -(-torch.Size(shape).numel() // ranks.world) for name, shape in shapes.items()}
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    for rank in range(ranks.world):
        parts = [part.numel() for part in ranks.groups(rank)]
        if sum(parts) != sum(shares.values()):
            raise _misfit(ranks, sum(shares.values()), sum(parts))
        offset = 0
        for name, shape in shapes.items():
            begin = rank * shares[name]
            length = min(shares[name], torch.Size(shape).numel() - begin)
            pieces[name] += _within(parts, rank, offset, begin, length)
            offset += shares[name]
    return pieces


def _within(parts: Sequence[int], rank: int, offset: int, start: int, length: int) -> Iterator[Piece]:
    """The same for the parts of one rank, whose values are the tensor's from `start` on."""
    begin = 0
    for group, size in enumerate(parts):
        low, high = max(offset, begin), min(offset + length, begin + size)
        if low < high:
            yield Piece(start + low - offset, rank, group, low - begin, high - low)
        begin += size


def _frozen(ranks: Ranks, states: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The parameters that are not trained; notes their pieces."""
    shapes: Mapping[str, Sequence[int]] = states.get("frozen_param_shapes") or {}
    infos: dict[str, TensorInfo] = {}
    holders = range(ranks.world if ranks.stage == 3 else 1)
    for rank in holders:
        fragments: Mapping[str, Tensor] = ranks.model_states(rank).get("frozen_param_fragments") or {}
        for name, shape in shapes.items():
            numel = torch.Size(shape).numel()
            share = -(-numel // len(holders))
            held = fragments[name].numel() if name in fragments else 0
            if held != share:
                raise _misfit(ranks, share, held)
            infos[name] = TensorInfo(tuple(shape), fragments[name].dtype)
            length = min(share, numel - rank * share)
            ranks.pieces.setdefault(name, []).append(Piece(rank * share, rank, name, 0, length))
    return infos


def _misfit(ranks: Ranks, needed: int, held: int) -> CheckpointError:
    return CheckpointError(
        f"{ranks.folder} has {held} values in partitions of parameters of {needed}; its files are not of one step, so"
        f" copy them again, or {WHOLE}"
    )
