"""Sampling from a saved model by vLLM's offline engine, without a trainer. vLLM is imported when it is needed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlvr.config.schema import ModelConfig
from rlvr.errors import EvaluationError, RecipeError, UserError
from rlvr.model import load_declared
from rlvr.rollout.generating import declared_ends, decoded_completions, encoded_prompts
from rlvr.rollout.rollouts import make_rollouts
from rlvr.rollout.vllm_settings import engine_environment, engine_options, sampling_options
from rlvr.types import Rollouts

REASON_CHARACTERS = 300
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
    device: torch.device | None,
    where: str,
) -> Iterator[VLLMSampler]:
    """A sampler of the model that `config` names, in a process of its own that ends afterwards.

    `device` is the only one that the engine uses; None leaves it those that this process sees. `where` opens messages
    on the model. Raises UserError for a model that is missing or that vLLM does not start with, and RecipeError for
    settings that vLLM does not have.
    """
    declared, generation = load_declared(config, where)
    ends = declared_ends(generation, tokenizer)
    sampling_parameters(sampling_options(settings, ends, 1.0))  # refuses settings before anything is loaded
    engine = _started(engine_options(config, declared, tokenizer, settings, where), device, config.path, where)
    try:
        limit = engine.llm_engine.model_config.max_model_len
        yield VLLMSampler(engine, tokenizer, settings, ends, limit)
    finally:
        engine.llm_engine.engine_core.shutdown()


def sampling_parameters(options: Mapping[str, Any]) -> Any:
    """vLLM's record of these arguments. Raises RecipeError for one that it does not have, and for wrong values."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams

    structure = options.get("structured_outputs")
    try:
        more = {"structured_outputs": StructuredOutputsParams(**structure)} if isinstance(structure, dict) else {}
        return SamplingParams(**{**options, **more})
    except (TypeError, ValueError, VLLMValidationError) as error:
        raise RecipeError(
            f"trainer: vLLM does not take its sampling settings ({_reason(error)}); change them (generation_kwargs are"
            " arguments of vLLM's SamplingParams), or set trainer.use_vllm to false"
        ) from error


def _started(options: Mapping[str, Any], device: torch.device | None, path: str, where: str) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    index = None if device is None else device.index
    own = engine_environment(os.environ, current_platform.device_control_env_var, index)
    kept = {name: os.environ[name] for name in own if name in os.environ}
    os.environ.update(own)
    try:
        return LLM(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{where}: vLLM does not start with {path!r} ({_reason(error)}); see its log, change the vllm_ settings"
            " of the trainer section, or set trainer.use_vllm to false"
        ) from error
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update(kept)


def _reason(error: Exception) -> str:
    """On one line: the first of a validation error's says nothing."""
    return shorten(str(error), REASON_CHARACTERS)
