"""What the readers share: the tensors that a format stores, and the view that gives them their names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rlvr.config.problems import nearest
from rlvr.errors import CheckpointError
from rlvr.extrapolation.view import TensorInfo


class Source(Protocol):
    """The tensors of one format by the names in its files, in their order; none of them is in memory."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Shapes and stored dtypes."""
        ...

    @property
    def shared(self) -> Mapping[str, str]:
        """Further names that the files give to tensors of `infos`."""
        ...

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of a tensor of `infos`, in memory of their own; all of it where it has no dimension.

        Raises CheckpointError where the file cannot be read any more.
        """
        ...


@dataclass
class StoredWeights:
    """A `WeightView` of a source. An alias may be read like the tensor it names."""

    path: Path
    step: int | None
    source: Source
    stored: Mapping[str, str]  # by name of the view, the one in the source
    tied: Mapping[str, str]

    def names(self) -> Sequence[str]:
        """Parameters and buffers in the order of the checkpoint, each tensor under one name."""
        return tuple(self.stored)

    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors, by which of `names` holds them."""
        return self.tied

    def info(self, name: str) -> TensorInfo:
        """Shape and stored dtype. Raises CheckpointError for a name that the checkpoint lacks."""
        return self.source.infos[self._stored(name)]

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        """The tensor on the CPU in its stored dtype; with `first` or `last` only these rows, counted as slices do."""
        stored = self._stored(name)
        first, last, _ = slice(first, last).indices(num_rows(self.source.infos[stored]))
        return self.source.rows(stored, first, max(first, last))

    def _stored(self, name: str) -> str:
        held = self.tied.get(name, name)
        if held not in self.stored:
            advice = nearest(name, self.stored, f"it has {len(self.stored)} other tensors")
            raise CheckpointError(f"{self.path} has no tensor {name!r}; {advice}")
        return self.stored[held]


def num_rows(info: TensorInfo) -> int:
    """The length of its first dimension; 1 where it has none."""
    return info.shape[0] if info.shape else 1


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises CheckpointError where it is none, or gives a key twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not readable as JSON ({reason}); copy or save the checkpoint anew") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; copy or save the checkpoint anew")
    return content


def _unique(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise CheckpointError(f"{path} names {twice!r} twice; remove one of the two, or save the checkpoint anew")
    return content


def check_inside(folder: Path, names: Iterable[str], source: Path) -> None:
    """Raises CheckpointError unless each name in `source` is that of a file lying in the folder itself."""
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{source} names the file {name!r}, which is not one of its own folder; mend it")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing, which {source.name} names; copy it, or save anew")
