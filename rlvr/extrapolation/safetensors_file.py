"""Files in the safetensors format, written piece by piece; the format's own library wants whole files in memory.

A file is the length of the header as 8 bytes, little-endian; the header, JSON with each tensor's dtype, shape and
place, padded with spaces to a multiple of 8; and the values without gaps, those of the largest dtypes first, so that
all are aligned.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.output_folder import writing_to
from rlvr.extrapolation.view import TensorInfo

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}
ALIGNMENT = 8
SYNCED_EVERY = 32 << 20  # bytes after which what is written starts its way to the disk


def num_bytes(info: TensorInfo) -> int:
    return info.numel * info.dtype.itemsize


def in_file_order(infos: Mapping[str, TensorInfo]) -> list[str]:
    """The names of a file's tensors in the order in which their values are stored."""
    return sorted(infos, key=lambda name: (-infos[name].dtype.itemsize, name))


def header_of(infos: Mapping[str, TensorInfo]) -> bytes:
    """The first bytes of the file, up to the values. Raises ExtrapolationError for a dtype that the format lacks."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in in_file_order(infos):
        info = infos[name]
        if info.dtype not in DTYPE_NAMES:
            raise ExtrapolationError(
                f"{name} is {info.dtype}, which safetensors files cannot hold; give another --dtype."
            )
        begin, end = end, end + num_bytes(info)
        entries[name] = {"dtype": DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint and what it will hold."""

    file: str
    infos: Mapping[str, TensorInfo]


def shards_of(infos: Mapping[str, TensorInfo], max_bytes: int) -> list[Shard]:
    """The tensors in their order, in files of at most so many bytes of values; a larger tensor has its own file."""
    groups: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if groups[-1] and size + num_bytes(info) > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = info
        size += num_bytes(info)
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    total = len(groups)
    return [
        Shard(f"model-{number:05}-of-{total:05}.safetensors", group) for number, group in enumerate(groups, start=1)
    ]


def index_of(shards: Sequence[Shard]) -> str:
    """The JSON text of model.safetensors.index.json."""
    total = sum(num_bytes(info) for shard in shards for info in shard.infos.values())
    where = {name: shard.file for shard in shards for name in shard.infos}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2, sort_keys=True) + "\n"


class ShardWriter:
    """A file of `out` that grows by tensors or rows of them, in the order of `in_file_order`; on the disk when closed.

    All methods raise ExtrapolationError where the file cannot be written, as on a full disk.
    """

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo], out: Path) -> None:
        header = header_of(infos)
        self._out = out
        self._left = sum(num_bytes(info) for info in infos.values())
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        with writing_to(out):
            self._file = path.open("xb", buffering=0)
        self._pool = ThreadPoolExecutor(1)
        self._write(memoryview(header))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._pool.shutdown()
            if error is None:
                assert self._left == 0, f"{self._left} bytes of the file were not written"
                self._wait()
                with writing_to(self._out):
                    os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def append(self, tensor: Tensor) -> None:
        """Writes the values, which are contiguous and of the dtype that the header says."""
        values = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._write(values)
        self._left -= len(values)
        self._unsynced += len(values)
        # Meanwhile the next tensors are computed; without this all writing to the disk waits for the end.
        if self._unsynced >= SYNCED_EVERY and (self._syncing is None or self._syncing.done()):
            self._wait()
            self._syncing = self._pool.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0

    def _write(self, data: memoryview) -> None:
        with writing_to(self._out):
            while len(data):
                data = data[self._file.write(data) :]

    def _wait(self) -> None:
        if self._syncing is not None:
            with writing_to(self._out):
                self._syncing.result()
