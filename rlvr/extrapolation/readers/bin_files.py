"""State dicts by torch.save: pytorch_model.bin, one file or shards with an index."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlvr.config.problems import shown
from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import num_rows
from rlvr.extrapolation.readers.pickles import MappedFiles, copied_rows, info_of, is_plain, load_mapped
from rlvr.extrapolation.readers.safetensor_files import check_shard, read_weight_map
from rlvr.extrapolation.view import TensorInfo


class BinFiles:
    """The tensors of some .bin files, mapped while they are read."""

    def __init__(self, infos: Mapping[str, TensorInfo], shared: Mapping[str, str], files: Mapping[str, Path]) -> None:
        self.infos, self.shared, self._files = infos, shared, files
        self._mapped = MappedFiles(_state_dict)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        info = self.infos[name]
        to_copy = info.numel * info.dtype.itemsize * (last - first) // max(num_rows(info), 1)
        return copied_rows(self._mapped.content(self._files[name], to_copy)[name], first, last)


def read_bin(path: Path) -> BinFiles:
    """Raises CheckpointError for a file that is damaged, or holds anything but a state dict of tensors."""
    infos, shared = _described(_state_dict(path))
    return BinFiles(infos, shared, dict.fromkeys(infos, path))


def read_bin_index(path: Path) -> BinFiles:
    """The same for the shards that a pytorch_model.bin.index.json names.

    Raises CheckpointError as `read_bin`, for missing shards, and where they and the index disagree.
    """
    weight_map = read_weight_map(path)
    infos: dict[str, TensorInfo] = {}
    shared: dict[str, str] = {}
    for shard in dict.fromkeys(weight_map.values()):
        state_dict = _state_dict(path.parent / shard)
        check_shard(path, weight_map, shard, list(state_dict))
        found, further = _described(state_dict)
        infos |= found
        shared |= further
    ordered = {name: infos[name] for name in weight_map if name in infos}
    return BinFiles(ordered, shared, {name: path.parent / weight_map[name] for name in ordered})


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    content = load_mapped(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {shown(content)} instead of a state dict; save the model's state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not is_plain(value):
            raise CheckpointError(
                f"{path} holds {type(value).__name__} {name!r}, which is no dense tensor; save only the model's"
                " state_dict()"
            )
    return content


def _described(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Shapes and dtypes of the tensors, and the further names of those that lie in the file once."""
    infos: dict[str, TensorInfo] = {}
    shared: dict[str, str] = {}
    places: dict[object, str] = {}
    for name, tensor in state_dict.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        kept = places.setdefault(place, name) if tensor.numel() else name
        if kept == name:
            infos[name] = info_of(tensor)
        else:
            shared[name] = kept
    return infos, shared
