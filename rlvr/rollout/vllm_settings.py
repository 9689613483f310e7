"""What the settings of a run mean to vLLM, as arguments of its own classes; needs no vLLM."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlvr.config.schema import ModelConfig
from rlvr.config.trainer_defaults import trl_fields
from rlvr.model_paths import resolve_model_path
from rlvr.rollout.generating import mapping_of

# Fields of GRPOConfig that decide vLLM's samples beside those that `generate` has too.
SAMPLING = ("vllm_max_model_length", "vllm_model_impl", "vllm_structured_outputs_regex", "generation_kwargs")


def is_vllm(settings: Mapping[str, Any]) -> bool:
    """Whether vLLM samples in runs with these fields of GRPOConfig."""
    return bool(settings.get("use_vllm", False))


def engine_record(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The engine that samples are drawn by, and what they depend on with that engine alone."""
    if not is_vllm(settings):
        return {"engine": "generate"}
    return {"engine": "vllm", **{name: field_of(settings, name) for name in SAMPLING}}


def field_of(settings: Mapping[str, Any], name: str) -> Any:
    """A field of GRPOConfig; TRL's default where the recipe does not set it."""
    return settings.get(name, trl_fields()[name]["default"])


def sampling_options(settings: Mapping[str, Any], ends: Sequence[int], temperature: float) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams, but for the seed, as TRL gives them for a run with these settings.

    At temperature 0 vLLM takes the most probable token and leaves top_p, top_k and min_p aside by itself.
    """
    options = {
        "temperature": temperature,
        "top_p": settings["top_p"],
        "top_k": settings["top_k"],  # 0 keeps all, as with transformers
        "min_p": settings["min_p"] or 0.0,
        "repetition_penalty": settings["repetition_penalty"],
        "max_tokens": settings["max_completion_length"],
        "stop_token_ids": list(ends),
        **mapping_of(settings.get("generation_kwargs")),
    }
    regex = field_of(settings, "vllm_structured_outputs_regex")
    return options if regex is None else options | {"structured_outputs": {"regex": regex}}


def engine_options(
    config: ModelConfig,
    declared: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Arguments of vllm.LLM: the model in the precision that `generate` runs it in, and the recipe's vLLM settings."""
    stored = str(declared.dtype).removeprefix("torch.") if declared.dtype is not None else "auto"
    own = stored if config.dtype == "auto" else config.dtype
    return {
        "model": resolve_model_path(config.path, where),
        "revision": config.revision,
        "tokenizer": tokenizer.name_or_path,  # the recipe's: a checkpoint need not hold one
        "tokenizer_revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "dtype": "bfloat16" if settings["bf16"] else "float16" if settings["fp16"] else own,
        "model_impl": field_of(settings, "vllm_model_impl"),
        "tensor_parallel_size": field_of(settings, "vllm_tensor_parallel_size"),
        "gpu_memory_utilization": field_of(settings, "vllm_gpu_memory_utilization"),
        "max_model_len": field_of(settings, "vllm_max_model_length"),
    }


def engine_environment(environment: Mapping[str, str], control: str, index: int | None) -> dict[str, str]:
    """What the engine's process finds otherwise than this one, whose devices the variable `control` names.

    Of these it has the one at `index`, or all where that is None: else it would take the first in every process of a
    launch.
    """
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # an engine in this process could not be got rid of
    if index is None:
        return own
    visible = environment.get(control, "")
    return own | {control: visible.split(",")[index] if visible else str(index)}
