"""What belongs to a checkpoint beside its weights: the model's configuration and code, and the tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlvr.checkpointing.folders import CHECKPOINT
from rlvr.extrapolation.checkpoints import POLICY, named_base
from rlvr.extrapolation.view import WeightView
from rlvr.run_directory import ADAPTER

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


def copy_side_files(folders: Sequence[Path], folder: Path, dtype: str | None) -> dict[str, str]:
    """Copies model and tokenizer files to `folder`, each kind from the first folder with any; returns whence, by kind.

    With `dtype`, the copied config.json names it. OSError where something cannot be read or written.
    """
    found = {}
    for kind, patterns in (("model", MODEL_FILES), ("tokenizer", TOKENIZER_FILES)):
        for source in folders:
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


def side_folders(views: Sequence[WeightView], adapter_base: Path | None) -> list[Path]:
    """Where such files may be, first the checkpoints from the last one on.

    Sharded checkpoints have none, but their run's policy does; adapters lack config.json, but their base has it.
    """
    found = []
    for view in reversed(views):
        folder = view.path if view.path.is_dir() else view.path.parent
        found.append(folder)
        if CHECKPOINT.fullmatch(folder.name):
            found.append(folder.parent / POLICY)
        if (folder / ADAPTER).is_file():
            found.append(adapter_base or named_base(folder))
    return found


def _files(source: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()})
