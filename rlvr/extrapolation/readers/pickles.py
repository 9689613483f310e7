"""Files of torch.save, which are pickles: mapped into memory, and never allowed to run code."""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.extrapolation.view import TensorInfo

# What torch raises for files that are cut off or overwritten in the middle.
DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
)
BUDGET = 1 << 27  # bytes that may be copied from mapped files before they are let go
Content = TypeVar("Content")


class Inert:
    """Stands for an object of a pickle that is not wanted: takes any state and does nothing with it."""

    def __new__(cls, *_: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...


def load_mapped(path: Path, stand_ins: Mapping[str, Any] | None = None) -> Any:
    """The content of a file, its tensors mapped: pages are read as they are touched, and dropped with the tensors.

    Of the pickle nothing is made but plain containers, numbers, texts and tensors. `stand_ins` gives harmless objects
    for the full names of the others that may occur. Raises CheckpointError for anything else, and for a damaged file.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in (stand_ins or {}).items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise refused(path, error) from error
    except DAMAGED as error:
        raise damaged(path, error) from error


class MappedFiles(Generic[Content]):
    """Files that stay mapped until BUDGET bytes were copied from them, whatever number they are.

    Not mapped anew for each read, as unpickling takes long, nor for ever, as pages that were read stay in memory.
    """

    def __init__(self, load: Callable[[Path], Content]) -> None:
        self._load = load
        self._held: dict[Path, tuple[object, Content]] = {}
        self._copied = 0

    def content(self, path: Path, to_copy: int) -> Content:
        """What `load` makes of a file, from which `to_copy` bytes will be copied. Raises what `load` does."""
        self._copied += to_copy
        if self._copied > BUDGET:
            self._held.clear()
            self._copied = to_copy
        # Reading a mapped file that was cut off in the meantime would end the process.
        now = _stamp(path)
        stamp, content = self._held.get(path) or (now, self._load(path))
        if stamp != now:
            content = self._load(path)
        self._held[path] = now, content
        return content


def _stamp(path: Path) -> object:
    """Differs once a file was written to or replaced."""
    if not path.exists():
        return None
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """The error for a pickle that wants something made that is neither plain nor a tensor."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"which would run {found[1]}" if found else "of a kind that is not read"
    return CheckpointError(
        f"{path} holds more than tensors, {what}, so it was not read; where you trust it, save its tensors as"
        " safetensors"
    )


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that torch cannot read, or for a folder one of whose files it cannot."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{error.filename or path} is missing; copy it, or save the checkpoint anew")
    if "mmap can only be used" in str(error):
        # torch asks this of what is no zip archive: files of torch before 1.6, and all that is no file of torch.
        return CheckpointError(
            f"{path} is truncated, or in the format of torch before 1.6; copy it again, or save it as safetensors"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return CheckpointError(f"{path} is truncated or damaged ({reason}); copy it again, or save the checkpoint anew")


def is_plain(value: object) -> bool:
    """Whether it is a tensor in one piece of memory, the only kind that the readers take."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def info_of(tensor: Tensor) -> TensorInfo:
    """Shape and dtype."""
    return TensorInfo(tuple(tensor.shape), tensor.dtype)


def copied_rows(tensor: Tensor, first: int, last: int) -> Tensor:
    """These rows of a mapped tensor in memory of their own; all of it where it has no dimension."""
    return (tensor[first:last] if tensor.dim() else tensor).detach().clone(memory_format=torch.contiguous_format)
