"""Hugging Face safetensors: one file, or shards with an index."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import check_inside, read_json
from rlvr.extrapolation.view import TensorInfo

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


class SafetensorFiles:
    """The tensors of some safetensors files, of which one at a time is open while it is read."""

    def __init__(self, infos: Mapping[str, TensorInfo], shared: Mapping[str, str], files: Mapping[str, Path]) -> None:
        self.infos, self.shared, self._files = infos, shared, files

    def rows(self, name: str, first: int, last: int) -> Tensor:
        with _opened(self._files[name]) as file:
            if not self.infos[name].shape:
                return file.get_tensor(name).clone()
            return file.get_slice(name)[first:last].clone()


def read_safetensors(path: Path) -> SafetensorFiles:
    """Of one file, only its header is read. Raises CheckpointError for one that is damaged."""
    infos, shared = _header(path)
    return SafetensorFiles(infos, shared, dict.fromkeys(infos, path))


def read_safetensors_index(path: Path) -> SafetensorFiles:
    """Of the shards that a model.safetensors.index.json names, only the headers are read.

    Raises CheckpointError for shards that are missing or damaged, and where they and the index disagree on which
    tensor is in which.
    """
    weight_map = read_weight_map(path)
    infos: dict[str, TensorInfo] = {}
    shared: dict[str, str] = {}
    for shard in dict.fromkeys(weight_map.values()):
        found, further = _header(path.parent / shard)
        check_shard(path, weight_map, shard, list(found))
        infos |= found
        shared |= further
    ordered = {name: infos[name] for name in weight_map}
    return SafetensorFiles(ordered, shared, {name: path.parent / shard for name, shard in weight_map.items()})


def read_weight_map(path: Path) -> dict[str, str]:
    """The shard of each tensor by an index file. Raises CheckpointError for a damaged index and for missing shards."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path} has no `weight_map` from tensors to files; copy or save the checkpoint anew")
    check_inside(path.parent, dict.fromkeys(weight_map.values()), path)
    return weight_map


def check_shard(index: Path, weight_map: Mapping[str, str], shard: str, held: list[str]) -> None:
    """Raises CheckpointError unless a shard holds just the tensors that the index puts there."""
    for name, expected in weight_map.items():
        if expected == shard and name not in held:
            raise CheckpointError(
                f"{index.parent / shard} does not hold {name!r}, which {index.name} puts there; save the checkpoint"
                " anew"
            )
    for name in held:
        elsewhere = weight_map.get(name)
        if elsewhere is None:
            raise CheckpointError(
                f"{index.parent / shard} holds {name!r}, which {index.name} does not name; save the checkpoint anew"
            )
        if elsewhere != shard:
            raise CheckpointError(
                f"{index.parent / shard} holds {name!r}, which {index.name} puts into {elsewhere}; the two overlap, so"
                " remove the files of the older save"
            )


def _header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """What a file says of its tensors, in the order in which they lie in it, and their further names."""
    infos = {}
    with _opened(path) as file:
        metadata: Mapping[str, str] = file.metadata() or {}
        for name in file.offset_keys():
            part = file.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{path} stores {name!r} as {dtype}; save the model in one of {', '.join(DTYPES)}"
                )
            infos[name] = TensorInfo(tuple(part.get_shape()), DTYPES[dtype])
    # safetensors writes under which name it kept a tensor that had several.
    return infos, {name: kept for name, kept in metadata.items() if kept in infos and name not in infos}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; copy it, or save the checkpoint anew") from error
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is truncated or damaged ({reason}); copy it again, or save the checkpoint anew"
        ) from error
