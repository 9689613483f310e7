"""What belongs to a checkpoint beside its weights: the model's configuration and code, and the tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlvr.extrapolation.view import WeightView
from rlvr.run_directory import CHECKPOINT

MODEL_FILES = ("config.json", "generation_config.json", "*.py")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "preprocessor_config.json",
    "processor_config.json",
)


def copy_side_files(views: Sequence[WeightView], folder: Path, dtype: str | None) -> dict[str, str]:
    """Copies model and tokenizer files, each kind from the newest checkpoint with any; returns whence, by kind.

    An adapter, for example, has no config.json of its own, but the model that it belongs to has. With `dtype`, the
    copied config.json names it. OSError where something cannot be read or written.
    """
    found = {}
    for kind, patterns in (("model", MODEL_FILES), ("tokenizer", TOKENIZER_FILES)):
        for source in (source for view in reversed(views) for source in _folders(view)):
            if files := _files(source, patterns):
                for file in files:
                    shutil.copyfile(file, folder / file.name)
                found[kind] = str(source)
                break
    config = folder / "config.json"
    if dtype is not None and config.exists():
        content = json.loads(config.read_text(encoding="utf-8"))
        content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return found


def _folders(view: WeightView) -> tuple[Path, ...]:
    """Where such files may be: a sharded checkpoint of a run has none, but the run's policy does."""
    folder = view.path if view.path.is_dir() else view.path.parent
    return (folder, folder.parent / "policy") if CHECKPOINT.fullmatch(folder.name) else (folder,)


def _files(source: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
