"""Small checkpoints of a tied model with a buffer of integers, and a view of safetensors files for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlvr.extrapolation.view import TensorInfo

EMBEDDING, HEAD, COUNTER = "model.embed_tokens.weight", "lm_head.weight", "model.counter"
NORM, MLP, ATTENTION = "model.norm.weight", "model.layers.0.mlp.weight", "model.layers.0.self_attn.weight"
SHAPES = {EMBEDDING: (11, 6), NORM: (6,), MLP: (10, 6), ATTENTION: (6, 6), "model.scale": ()}
Tensors = dict[str, Tensor]


class PlainView:
    """A `WeightView` of the safetensors files of a folder; `aliases.json` names those of tied tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = path / "trainer_state.json"
        self.step: int | None = json.loads(state.read_text())["global_step"] if state.exists() else None
        aliases = path / "aliases.json"
        self._aliases: dict[str, str] = json.loads(aliases.read_text()) if aliases.exists() else {}
        self._files = {}
        for file in sorted(path.glob("*.safetensors")):
            opened = safe_open(file, "pt")
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def names(self) -> Sequence[str]:
        return list(self._files)

    def aliases(self) -> Mapping[str, str]:
        return self._aliases

    def info(self, name: str) -> TensorInfo:
        tensor = self._files[name].get_tensor(name)
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def read(self, name: str, first: int = 0, last: int | None = None) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor if tensor.dim() == 0 else tensor[first:last]


def tensors_of(seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return {**drawn, COUNTER: torch.arange(seed, seed + 5)}


def save(folder: Path, tensors: Tensors, step: int | None = None, tied: bool = False) -> Path:
    """A checkpoint with a configuration and a tokenizer."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "dtype": "bfloat16", "of": folder.name}))
    (folder / "tokenizer.json").write_text(folder.name)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if tied:
        (folder / "aliases.json").write_text(json.dumps({HEAD: EMBEDDING}))
    return folder


def load(folder: Path) -> Tensors:
    """All tensors of a folder's files, as the format's own library reads them."""
    return {name: each for file in sorted(folder.glob("*.safetensors")) for name, each in load_file(file).items()}


def same(first: Tensors, second: Tensors) -> bool:
    """Bit for bit, dtypes and shapes included."""
    if first.keys() != second.keys():
        return False
    return all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(first[name].reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8))
        for name in first
    )
