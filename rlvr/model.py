"""Loads the policy and its tokenizer; `builtin://starter` is the tiny policy inside the package."""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlvr.config.schema import ModelConfig
from rlvr.errors import CheckpointError, UserError
from rlvr.model_paths import WHERE, is_adapter, resolve_model_path
from rlvr.run_directory import ADAPTER


def base_of(config: ModelConfig) -> ModelConfig:
    """The same for the model that an adapter's folder names as its base. Raises CheckpointError where it names none."""
    settings = Path(config.path).expanduser() / ADAPTER
    try:
        saved = json.loads(settings.read_text(encoding="utf-8"))
        base, revision = saved["base_model_name_or_path"], saved.get("revision")
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{settings} is no adapter's configuration, as PEFT writes it; save it anew") from error
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{settings} names no base_model_name_or_path; write the adapter's base there")
    return config.model_copy(update={"path": base, "revision": revision})


def load_tokenizer(config: ModelConfig, where: str = WHERE) -> PreTrainedTokenizerBase:
    path = resolve_model_path(config.path, where)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").exists():
        return load_tokenizer(base_of(config), where)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code, "padding_side": "left"}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **options)
    except OSError as error:
        raise _not_loaded(config.path, error, where) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(config: ModelConfig, where: str = WHERE) -> PreTrainedModel:
    """The model with its weights, quantised where the configuration says so.

    Of an adapter's folder it is the base with the adapter in its layers, as in the run that saved it, and nothing in it
    is trained. New adapters (`config.lora`) are not put on. Raises UserError.
    """
    path = resolve_model_path(config.path, where)
    if is_adapter(path):
        from rlvr.adapters import with_adapter

        model = with_adapter(load_policy(base_of(config), where), path)
        return model.get_base_model()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            attn_implementation=config.attn_implementation,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            quantization_config=_quantization(config),
        )
    except OSError as error:
        raise _not_loaded(config.path, error, where) from error
    if config.quantization is not None:
        _keep_trainable(model)
    return model


def load_declared(config: ModelConfig, where: str = WHERE) -> tuple[PreTrainedConfig, GenerationConfig]:
    """What a model says of itself, without its weights: its configuration and its generation settings.

    Raises UserError where there is no such model.
    """
    path = resolve_model_path(config.path, where)
    try:
        declared = AutoConfig.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except OSError as error:
        raise _not_loaded(config.path, error, where) from error
    try:
        return declared, GenerationConfig.from_pretrained(path, revision=config.revision)
    except OSError:  # it has no such file: transformers goes by the configuration then
        return declared, GenerationConfig.from_model_config(declared)


QUANTIZATIONS: Mapping[str, Callable[[torch.dtype], BitsAndBytesConfig]] = {
    # QLoRA, arXiv 2305.14314: normal floats, of which the scales are quantised as well.
    "4bit": lambda dtype: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    ),
    "8bit": lambda dtype: BitsAndBytesConfig(load_in_8bit=True),
}


def _quantization(config: ModelConfig) -> BitsAndBytesConfig | None:
    if config.quantization is None:
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization: {config.quantization!r} needs bitsandbytes, which is not installed; run"
            " pip install 'rlvr[quantization]'"
        )
    return QUANTIZATIONS[config.quantization](
        torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    )


def _keep_trainable(model: PreTrainedModel) -> None:
    """Keeps 4-bit layers from repacking their weights for some CPUs when they run in evaluation mode.

    They would give no gradient to their inputs from then on, without a word.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _not_loaded(path: str, error: OSError, where: str) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(f"{where}: {path!r} is neither a local folder nor a model that the Hub gave: {reason}")
