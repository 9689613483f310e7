"""Checkpoints of one model, read tensor by tensor under the names that the tuned one has."""

from collections.abc import Iterator, Mapping, Sequence
from threading import Lock

import torch
from torch import Tensor

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.view import TensorInfo, WeightView

BLOCK_VALUES = 1 << 19  # of a tensor that are read and computed at once: 2 MB in float32, which memory is reused for
NAMED_AT_MOST = 5
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Rows = tuple[int, int | None]  # first and last row as `WeightView.read` takes them
WHOLE: Rows = (0, None)


class Sources:
    """Checkpoints with the same tensors, the tuned one last. May be read by several threads.

    Raises ExtrapolationError for tensors that one lacks, has besides, or has in another shape or kind of number. What
    is tied in the tuned model may have two names elsewhere if its values are the same.
    """

    def __init__(self, views: Sequence[WeightView]) -> None:
        self.views = tuple(views)
        self.tuned = self.views[-1]
        if not self.tuned.names():
            raise ExtrapolationError(f"{self.tuned.path} has no tensors; give the folder of a checkpoint.")
        self.names: tuple[str, ...] = tuple(self.tuned.names())
        self.infos: dict[str, TensorInfo] = {name: self.tuned.info(name) for name in self.names}
        self._name_in = [_same_tensors(self.tuned, view) for view in self.views]
        self._locks = [Lock() for _ in self.views]

    def read(self, name: str, rows: Rows = WHOLE) -> list[Tensor]:
        """The tensor or these rows of it in each checkpoint, in the order of the views."""
        return [self._read(index, name, rows) for index in range(len(self.views))]

    def read_tuned(self, name: str, rows: Rows = WHOLE) -> Tensor:
        return self._read(len(self.views) - 1, name, rows)

    def _read(self, index: int, name: str, rows: Rows) -> Tensor:
        with self._locks[index]:
            return self.views[index].read(self._name_in[index][name], *rows)

    def check_arithmetic(self, names: Sequence[str]) -> None:
        """Raises ExtrapolationError for a tensor with which one cannot calculate."""
        for name in names:
            for view, name_in in zip(self.views, self._name_in, strict=True):
                if (dtype := view.info(name_in[name]).dtype) not in FLOATS:
                    raise ExtrapolationError(
                        f"{name} of {view.path} is stored as {dtype_name(dtype)}, with which one cannot calculate; give"
                        " an unquantised checkpoint, or copy the tensor by --copy."
                    )

    def not_finite(
        self, name: str, tensors: Sequence[Tensor], remedy: str = "take an earlier checkpoint"
    ) -> ExtrapolationError | None:
        """What to raise if one of the tensors has NaN or infinite values; `tensors` as `read` returns them."""
        for view, tensor in zip(self.views[-len(tensors) :], tensors, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                return ExtrapolationError(f"{name} of {view.path} has values that are NaN or infinite; {remedy}.")
        return None


def row_blocks(info: TensorInfo, values: int | None = None) -> Iterator[Rows]:
    """The tensor in blocks of rows of `values` (BLOCK_VALUES) or less, but one row at least; whole if it is small."""
    values = values or BLOCK_VALUES
    if info.numel <= values:
        yield WHOLE
        return
    count = info.shape[0]
    rows = max(1, values * count // info.numel)
    yield from ((first, min(first + rows, count)) for first in range(0, count, rows))


def dtype_name(dtype: torch.dtype) -> str:
    """Such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def _same_tensors(tuned: WeightView, other: WeightView) -> Mapping[str, str]:
    """By name in the tuned checkpoint, the name in the other."""
    names, aliases, tied = set(other.names()), other.aliases(), tuned.aliases()
    found = {name: name if name in names else aliases.get(name, "") for name in tuned.names()}
    _refuse([name for name, name_in in found.items() if not name_in], f"{other.path} lacks", f"that {tuned.path} has")
    extra = [name for name in other.names() if name not in found]
    _refuse([name for name in extra if name not in tied], f"{other.path} has", f"that {tuned.path} lacks")
    for name in extra:
        if not _equal(other, name, found[tied[name]]):
            raise ExtrapolationError(
                f"{name} and {tied[name]} are tied in {tuned.path} but differ in {other.path}; give checkpoints of the"
                " same model."
            )
    unlike = {name: _difference(tuned.info(name), other.info(name_in)) for name, name_in in found.items()}
    where = f"in another form than {tuned.path}"
    _refuse([f"{name} {unlike[name]}" for name in unlike if unlike[name]], f"{other.path} has", where)
    return found


def _refuse(names: Sequence[str], before: str, after: str) -> None:
    if not names:
        return
    shown = ", ".join(names[:NAMED_AT_MOST]) + (", ..." if len(names) > NAMED_AT_MOST else "")
    count = f"{len(names)} tensors" if len(names) > 1 else "1 tensor"
    raise ExtrapolationError(f"{before} {count} {after} ({shown}); give checkpoints of the same model.")


def _difference(tuned: TensorInfo, other: TensorInfo) -> str:
    """Empty where the two can be calculated with."""
    if tuned.shape != other.shape:
        return f"{list(other.shape)} for {list(tuned.shape)}"
    if tuned.dtype.is_floating_point != other.dtype.is_floating_point:
        return f"{dtype_name(other.dtype)} for {dtype_name(tuned.dtype)}"
    return ""


def _equal(view: WeightView, first: str, second: str) -> bool:
    if view.info(first).shape != view.info(second).shape:
        return False
    return all(torch.equal(view.read(first, *rows), view.read(second, *rows)) for rows in row_blocks(view.info(first)))
