"""Files of torch.save, which are pickles: mapped into memory, and never allowed to run code."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.extrapolation.view import TensorInfo

# What torch raises for files that are cut off or overwritten in the middle.
DAMAGED = (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError)


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
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; copy it, or save the checkpoint anew") from error
    except pickle.UnpicklingError as error:
        raise refused(path, error) from error
    except DAMAGED as error:
        raise damaged(path, error) from error


def refused(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """The error for a pickle that wants something made that is neither plain nor a tensor."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"which would run {found[1]}" if found else "of a kind that is not read"
    return CheckpointError(
        f"{path} holds more than tensors, {what}, so it was not read; where you trust it, save its tensors as"
        " safetensors"
    )


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that torch cannot read."""
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
