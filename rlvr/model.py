"""Loads the policy and its tokenizer; `builtin://starter` is the tiny policy inside the package."""

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlvr.config.schema import ModelConfig
from rlvr.errors import UserError

BUILTIN = {"builtin://starter": "starter"}
LOCAL_PREFIXES = ("/", "./", "../", "~")
WHERE = "model.path"  # the key of a recipe


def resolve_model_path(path: str, where: str = WHERE) -> str:
    """The folder of a built-in model, a local folder, or a Hub id; `where` opens every message.

    Raises UserError when a local folder is missing.
    """
    if path in BUILTIN:
        return str(files("rlvr") / BUILTIN[path])
    if path.startswith("builtin://"):
        raise UserError(f"{where}: there is no built-in model {path!r}; valid: {', '.join(sorted(BUILTIN))}.")
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").exists():
            raise UserError(f"{where}: {path!r} is a folder without a config.json; give the folder of a saved model.")
        return str(local)
    if path.startswith(LOCAL_PREFIXES) or path.count("/") > 1:
        raise UserError(f"{where}: the folder {path!r} does not exist; give a saved model's folder or a Hub id.")
    return path


def load_tokenizer(config: ModelConfig, where: str = WHERE) -> PreTrainedTokenizerBase:
    path = resolve_model_path(config.path, where)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code, "padding_side": "left"}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **options)
    except OSError as error:
        raise _not_loaded(config.path, error, where) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(config: ModelConfig, where: str = WHERE) -> PreTrainedModel:
    path = resolve_model_path(config.path, where)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except OSError as error:
        raise _not_loaded(config.path, error, where) from error
    return model


def _not_loaded(path: str, error: OSError, where: str) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(f"{where}: {path!r} is neither a local folder nor a model that the Hub gave: {reason}")
