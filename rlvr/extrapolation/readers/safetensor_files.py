"""Hugging Face safetensors: one file, or shards with an index."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Place:
    """Where the values of a tensor begin, in bytes."""

    file: Path
    start: int


class SafetensorFiles:
    """The tensors of some safetensors files, of which one at a time is open while it is read.

    Rows are read at their place: a view of the format's own library maps the whole file for each, and a mapped file
    that becomes shorter meanwhile ends the process.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], shared: Mapping[str, str], places: Mapping[str, Place]) -> None:
        self.infos, self.shared, self._places = infos, shared, places

    def rows(self, name: str, first: int, last: int) -> Tensor:
        info, place = self.infos[name], self._places[name]
        values = torch.empty((last - first, *info.shape[1:]) if info.shape else (), dtype=info.dtype)
        row_bytes = values.nbytes // (last - first) if last > first else 0
        data = values.reshape(-1).view(torch.uint8).numpy().data
        try:
            with place.file.open("rb", buffering=0) as file:
                file.seek(place.start + first * row_bytes)
                while len(data) and (count := file.readinto(data)):
                    data = data[count:]
        except FileNotFoundError as error:
            raise _missing(place.file) from error
        except OSError as error:
            raise _damaged(place.file, str(error)) from error
        if len(data):
            raise _damaged(place.file, f"it ends within {name}")
        return values


def read_safetensors(path: Path) -> SafetensorFiles:
    """Of one file, only its header is read. Raises CheckpointError for one that is damaged."""
    return SafetensorFiles(*_header(path))


def read_safetensors_index(path: Path) -> SafetensorFiles:
    """Of the shards that a model.safetensors.index.json names, only the headers are read.

    Raises CheckpointError for shards that are missing or damaged, and where they and the index disagree on which
    tensor is in which.
    """
    weight_map = read_weight_map(path)
    infos: dict[str, TensorInfo] = {}
    shared: dict[str, str] = {}
    places: dict[str, Place] = {}
    for shard in dict.fromkeys(weight_map.values()):
        found, further, where = _header(path.parent / shard)
        check_shard(path, weight_map, shard, list(found))
        infos |= found
        shared |= further
        places |= where
    return SafetensorFiles({name: infos[name] for name in weight_map}, shared, places)


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


def _header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str], dict[str, Place]]:
    """What a file says of its tensors, in the order in which they lie in it, their further names, and their places."""
    infos, places = {}, {}
    with _opened(path) as file:
        metadata: Mapping[str, str] = file.metadata() or {}
        start = _start_of_values(path)
        for name in file.offset_keys():
            part = file.get_slice(name)
            dtype = part.get_dtype()
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{path} stores {name!r} as {dtype}; save the model in one of {', '.join(DTYPES)}"
                )
            infos[name] = TensorInfo(tuple(part.get_shape()), DTYPES[dtype])
            places[name] = Place(path, start)
            start += infos[name].numel * infos[name].dtype.itemsize  # the library refuses files with gaps
    # safetensors writes under which name it kept a tensor that had several.
    return infos, {name: kept for name, kept in metadata.items() if kept in infos and name not in infos}, places


def _start_of_values(path: Path) -> int:
    """After the length of the header in 8 bytes, and the header."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def _missing(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is missing; copy it, or save the checkpoint anew")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged ({reason}); copy it again, or save the checkpoint anew")
