"""Sampling from a saved model by vLLM's offline engine, without a trainer. vLLM is imported when it is needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlvr.config.schema import ModelConfig
from rlvr.config.trainer_defaults import trl_fields
from rlvr.errors import EvaluationError, RecipeError, UserError
from rlvr.model import load_declared, resolve_model_path
from rlvr.rollout.generating import declared_ends, decoded_completions, encoded_prompts, mapping_of
from rlvr.rollout.rollouts import make_rollouts
from rlvr.types import Rollouts

# Fields of GRPOConfig that decide vLLM's samples beside those that `generate` has too.
SAMPLING = ("vllm_max_model_length", "vllm_model_impl", "vllm_structured_outputs_regex", "generation_kwargs")
MAX_SEED = 2**62  # vLLM holds seeds as 64-bit integers with a sign


@dataclass(frozen=True)
class VLLMSampler:
    """One completion per row, as `ModelSampler` draws them with `generate`: same prompts, settings and end tokens.

    `settings` are the fields of GRPOConfig of a run (`LoadedRecipe.trainer`). Each request has a seed of its own from
    torch's generator, so that `set_seed` decides the samples here too, in whatever order the engine runs them.
    """

    engine: Any  # vllm.LLM
    tokenizer: PreTrainedTokenizerBase
    settings: Mapping[str, Any]
    ends: list[int]  # every token that ends a completion
    max_length: int  # tokens of prompt and completion that the engine has room for

    def __call__(self, rows: Sequence[Mapping[str, Any]], *, temperature: float) -> Rollouts:
        """Temperature 0 is greedy. Raises EvaluationError for a prompt that fills the engine's context."""
        prompts = [row["prompt"] for row in rows]
        prompt_ids = encoded_prompts(prompts, self.tokenizer, self.settings)
        self._check_lengths(rows, prompt_ids)
        options = sampling_options(self.settings, self.ends, temperature)
        seeds = torch.randint(MAX_SEED, (len(rows),)).tolist()
        outputs = self.engine.generate(
            [{"prompt_token_ids": ids} for ids in prompt_ids],
            [sampling_parameters(options | {"seed": seed}) for seed in seeds],
            use_tqdm=False,
        )
        completion_ids = [list(each.outputs[0].token_ids) for each in outputs]
        return make_rollouts(
            rows,
            prompt_ids,
            completion_ids,
            decoded_completions(prompts, prompt_ids, completion_ids, self.tokenizer),
            generated_masks=None,
            sampling_logprobs=None,
            end_token_ids=self.ends,
        )

    def _check_lengths(self, rows: Sequence[Mapping[str, Any]], prompt_ids: list[list[int]]) -> None:
        for row, ids in zip(rows, prompt_ids, strict=True):
            if len(ids) >= self.max_length:
                raise EvaluationError(
                    f"Prompt {row['prompt_id']} has {len(ids)} tokens, and vLLM has room for {self.max_length} with"
                    " the completion; raise trainer.vllm_max_model_length, or leave the prompt out."
                )


@contextmanager
def vllm_sampler(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    num_processes: int,
    where: str,
) -> Iterator[VLLMSampler]:
    """A sampler of the model that `config` names; its memory is free afterwards. `where` opens messages on the model.

    Raises UserError for a model that is missing or that vLLM does not start with, RecipeError for settings of
    `trainer.generation_kwargs` that vLLM does not have.
    """
    declared, generation = load_declared(config, where)
    ends = declared_ends(generation, tokenizer)
    sampling_parameters(sampling_options(settings, ends, 1.0))  # refuses settings before anything is loaded
    engine = _started(engine_options(config, declared, tokenizer, settings, num_processes, where), config.path, where)
    try:
        limit = engine.llm_engine.model_config.max_model_len
        yield VLLMSampler(engine, tokenizer, settings, ends, limit)
    finally:
        _stop(engine)


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


def sampling_parameters(options: Mapping[str, Any]) -> Any:
    """vLLM's record of these arguments. Raises RecipeError for one that it does not have, or does not take."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structure = options.get("structured_outputs")
    more = {"structured_outputs": StructuredOutputsParams(**structure)} if isinstance(structure, dict) else {}
    try:
        return SamplingParams(**{**options, **more})
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"trainer.generation_kwargs: vLLM does not take them ({_first_line(error)}); give arguments of its"
            " SamplingParams, or set trainer.use_vllm to false"
        ) from error


def engine_options(
    config: ModelConfig,
    declared: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    num_processes: int,
    where: str,
) -> dict[str, Any]:
    """Arguments of vllm.LLM: the model in the precision that `generate` runs it in, and the recipe's vLLM settings.

    In several processes each engine stays on the device of its own, which vLLM learns from the launcher's environment.
    """
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
        "distributed_executor_backend": "external_launcher" if num_processes > 1 else None,
    }


def _started(options: Mapping[str, Any], path: str, where: str) -> Any:
    from vllm import LLM

    try:
        return LLM(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{where}: vLLM does not start with {path!r} ({_first_line(error)}); see its log, change the vllm_ settings"
            " of the trainer section, or set trainer.use_vllm to false"
        ) from error


def _stop(engine: Any) -> None:
    """Ends the engine's process, or, where it runs in this one, gives its weights and groups of processes up."""
    from vllm.distributed.parallel_state import destroy_model_parallel

    engine.llm_engine.engine_core.shutdown()
    destroy_model_parallel()  # the group of all processes is accelerate's too, and stays


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
