"""Checkpoints of torch.distributed.checkpoint, as FSDP2 writes them: boxes of tensors in the files of the ranks."""

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import check_inside
from rlvr.extrapolation.readers.pickles import DAMAGED, damaged, refused
from rlvr.extrapolation.view import TensorInfo

METADATA = ".metadata"
MODEL = "model"  # under which accelerate saves the state dict of the model
# The classes that .metadata may name, a pickle like any other. They are records: making one runs nothing.
RECORDS = {
    dcp_metadata.__name__: (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    dcp_files.__name__: ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
}


class ShardedTensors:
    """The tensors of a DCP folder. While rows are read, one rank's piece of their tensor at a time is in memory."""

    def __init__(
        self, folder: Path, metadata: Metadata, stored: Mapping[str, tuple[str, TensorStorageMetadata]]
    ) -> None:
        self.infos = {n: TensorInfo(tuple(entry.size), entry.properties.dtype) for n, (_, entry) in stored.items()}
        self.shared: Mapping[str, str] = {}
        self._folder, self._metadata, self._stored = folder, metadata, stored

    def rows(self, name: str, first: int, last: int) -> Tensor:
        info = self.infos[name]
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        wanted = ChunkStorageMetadata(torch.Size((first, *[0] * (len(shape) - 1)) if shape else ()), torch.Size(shape))
        values = torch.empty(shape, dtype=info.dtype)
        if not values.numel():
            return values
        reader = dcp_files.FileSystemReader(self._folder)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        try:
            items = create_read_items_for_chunk_list(*self._stored[name], [wanted])
            reader.read_data(LoadPlan(items), _IntoTensor(values)).wait()
        except pickle.UnpicklingError as error:
            raise refused(self._folder, error) from error
        except DAMAGED as error:
            raise damaged(self._folder, error) from error
        return values


class _IntoTensor(LoadPlanner):
    """Has what is read put into one tensor."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def set_up_planner(self, *_: Any, **__: Any) -> None: ...

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part = self.target
        for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            part = part.narrow(dim, offset, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None: ...


def read_sharded(folder: Path) -> ShardedTensors:
    """A folder with .metadata and *.distcp files, of which only the former is read.

    Raises CheckpointError for shards that are missing or shorter than .metadata says, for tensors of which parts are
    missing, and for a .metadata that is damaged or would run code.
    """
    metadata = _metadata(folder / METADATA)
    try:
        stored = _tensors(folder, metadata)
        _check_shards(folder, metadata.storage_data)
        return ShardedTensors(folder, metadata, stored)
    except DAMAGED as error:
        raise damaged(folder / METADATA, error) from error


def _tensors(folder: Path, metadata: Metadata) -> dict[str, tuple[str, TensorStorageMetadata]]:
    """By name of the model's tensors: the key in the folder, and what is kept of the tensor. Raises CheckpointError."""
    described = metadata.state_dict_metadata
    paths = metadata.planner_data or {key: (key,) for key in described}
    of_model = any(path[0] == MODEL and len(path) > 1 for path in paths.values())
    stored: dict[str, tuple[str, TensorStorageMetadata]] = {}
    for key, entry in described.items():
        path = paths.get(key, (key,))
        if not isinstance(entry, TensorStorageMetadata) or (of_model and path[0] != MODEL):
            continue
        name = ".".join(str(part) for part in (path[1:] if of_model else path))
        if name in stored:
            raise CheckpointError(f"{folder} has two tensors {name!r}; save the model anew, alone in a state dict")
        stored[name] = key, entry
        held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if held != math.prod(entry.size):
            raise CheckpointError(
                f"{folder} has {held} of the {math.prod(entry.size)} values of {name!r}; save the checkpoint anew"
            )
    if not stored:
        raise CheckpointError(f"{folder} holds no tensors of a model; give the folder {MODEL} weights were saved to")
    return stored


def _check_shards(folder: Path, places: Mapping[Any, Any]) -> None:
    """Raises CheckpointError unless each file is there and as long as what is to be read from it."""
    ends: dict[str, int] = {}
    for place in places.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    check_inside(folder, ends, folder / METADATA)
    for name, end in ends.items():
        size = (folder / name).stat().st_size
        if size < end:
            raise CheckpointError(
                f"{folder / name} is truncated: it has {size} bytes of at least {end}; copy it again, or save the"
                " checkpoint anew"
            )


class _RecordUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in RECORDS.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where it was written, on whatever system
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _metadata(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            found = _RecordUnpickler(file).load()
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise refused(path, error) from error
        raise damaged(path, error) from error
    except DAMAGED as error:
        raise damaged(path, error) from error
    if not isinstance(found, Metadata) or not found.storage_data:
        raise CheckpointError(f"{path} does not say where the tensors lie; save the checkpoint anew")
    return found
