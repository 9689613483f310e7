"""Values of all ranks, in the order of ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from rlvr.errors import UserError

Value = TypeVar("Value")


def gather_floats(accelerator: Accelerator, columns: Sequence[Sequence[float | None]]) -> Tensor:
    """[B over all ranks, len(columns)], None as NaN; B is the same on every rank."""
    values = [[float("nan") if value is None else value for value in column] for column in columns]
    return accelerator.gather(torch.tensor(values, device=accelerator.device).T.contiguous())


def gather_ragged(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The values [n] of every rank one after the other; n may differ between ranks."""
    if accelerator.num_processes == 1:
        return values
    sizes = accelerator.gather(torch.tensor([len(values)], device=values.device)).tolist()
    padded = torch.nn.functional.pad(values, (0, max(sizes) - len(values)))
    pieces = accelerator.gather(padded.unsqueeze(0))
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def gather_table(table: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Every column with the entries of all ranks; the columns are the same on every rank."""
    return {name: gather_object(values) for name, values in sorted(table.items())}


def from_main_process(compute: Callable[[], Value]) -> Value:
    """What `compute` returns on the main process, on every rank; all of them raise a UserError that it raises."""
    shared: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            shared = [compute()]
        except UserError as error:
            shared = [error]  # the other ranks would wait for ever
    broadcast_object_list(shared)
    if isinstance(shared[0], UserError):
        raise shared[0]
    value: Value = shared[0]
    return value
