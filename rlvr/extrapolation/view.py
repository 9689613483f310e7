"""What all kinds of checkpoints have in common: a name, and a tensor or some rows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Its number of values."""
        return torch.Size(self.shape).numel()


class WeightView(Protocol):
    """A checkpoint, of which nothing is in memory that was not asked for.

    Names are those of the model's state dict as `save_pretrained` writes it, whatever engine wrote the checkpoint.
    """

    path: Path
    step: int | None  # optimiser steps of the run that wrote it; None where nothing says so

    def names(self) -> Sequence[str]:
        """Parameters and buffers in the order of the checkpoint, each tensor under one name."""
        ...

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors, by which of `names` holds them."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Shape and stored dtype."""
        ...

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """The tensor on the CPU in its stored dtype; with `first` or `last` only these rows of its first dimension."""
        ...
