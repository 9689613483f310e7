"""Names of tensors: which are tied, and whether an engine's names are those of a saved model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlvr.errors import CheckpointError
from rlvr.extrapolation.readers.base import Source, num_rows, read_json

HEAD = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")  # as the names of input embeddings end
USUAL_EMBEDDING = "model.embed_tokens.weight"
BLOCK_VALUES = 1 << 22  # how many values of two tensors are compared at a time


def config_of(folders: Iterable[Path]) -> dict[str, Any] | None:
    """The config.json of the first folder that has one. Raises CheckpointError when it does not parse."""
    found = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    return read_json(found) if found else None


def named(source: Source, config: Mapping[str, Any] | None) -> tuple[dict[str, str], dict[str, str]]:
    """For each name of a view the one in the source, and the aliases.

    Embeddings and head are one tensor, that of the embeddings, when the config says `tie_word_embeddings`, whether or
    not the files hold a copy as the head. Where no config says so or not, they are when the files have no head, or one
    that has the same bits.
    """
    stored = {name: name for name in source.infos}
    tied = dict(source.shared)
    embeddings = [name for name in (*stored, *tied) if name.endswith(EMBEDDINGS)]
    if len(embeddings) > 1:
        return stored, tied
    if not embeddings and not (_declared(config) and HEAD in stored):
        return stored, tied
    embedding = embeddings[0] if embeddings else USUAL_EMBEDDING
    if HEAD in stored and (tied.get(embedding) == HEAD or not embeddings):
        # The files keep the tensor under the name of the head.
        renamed = {embedding if name == HEAD else name: kept for name, kept in stored.items()}
        return renamed, {name: held for name, held in tied.items() if name != embedding} | {HEAD: embedding}
    if embedding in stored and _tied(source, embedding, config):
        stored.pop(HEAD, None)
        tied[HEAD] = embedding
    return stored, tied


def _declared(config: Mapping[str, Any] | None) -> bool | None:
    """What the config, or that of its text model, says of ties; None where it says nothing."""
    for section in (config or {}, (config or {}).get("text_config")):
        if isinstance(section, Mapping) and isinstance(section.get("tie_word_embeddings"), bool):
            return bool(section["tie_word_embeddings"])
    return None


def _tied(source: Source, embedding: str, config: Mapping[str, Any] | None) -> bool:
    declared = _declared(config)
    if declared is not None:
        return declared
    return HEAD not in source.infos or _same_bits(source, embedding, HEAD)


def _same_bits(source: Source, one: str, other: str) -> bool:
    """Whether two tensors are equal, of which no more is read than up to the first block that is not."""
    info = source.infos[one]
    if info != source.infos[other]:
        return False
    rows = num_rows(info)
    step = max(1, BLOCK_VALUES * rows // max(info.numel, 1))
    return all(
        torch.equal(
            source.rows(one, first, min(first + step, rows)), source.rows(other, first, min(first + step, rows))
        )
        for first in range(0, rows, step)
    )


def check_engine_names(path: Path, source: Source, config: Mapping[str, Any] | None) -> None:
    """Raises CheckpointError for a model whose parameters are named or cut otherwise in memory than when saved.

    An engine's checkpoint holds them as they are in memory.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if any(".lora_A." in name or ".lora_embedding_A." in name for name in source.infos):
        raise CheckpointError(
            f"{path} holds an adapter as it is in memory; give the folder that has its adapter_config.json"
        )
    model_type = (config or {}).get("model_type")
    if isinstance(model_type, str) and get_checkpoint_conversion_mapping(model_type):
        raise CheckpointError(
            f"{path} holds the parameters of a {model_type} as they are in memory, which a saved model names otherwise;"
            " give a folder or file that save_pretrained wrote, such as the model.safetensors of the same step"
        )
