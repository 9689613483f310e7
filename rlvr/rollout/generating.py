"""Sampling from a model by its own `generate`, where there is no trainer."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl.chat_template_utils import parse_response

from rlvr.rollout.rollouts import make_rollouts
from rlvr.rollout.settings import evaluation_options
from rlvr.types import Rollouts


@dataclass(frozen=True)
class ModelSampler:
    """One completion per row, token for token what the trainer samples for evaluation with transformers as its engine.

    `settings` are the fields of GRPOConfig of a run (`LoadedRecipe.trainer`). Any model will do that has `generate`; it
    is asked in eval mode, on the device where it is, under the run's mixed precision. `cast_lm_head_to_fp32` changes
    a trainer's model when that is built, and is left to whoever loads the model here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Mapping[str, Any]

    @torch.no_grad()
    def __call__(self, rows: Sequence[Mapping[str, Any]], *, temperature: float) -> Rollouts:
        """Temperature 0 is greedy."""
        prompts = [row["prompt"] for row in rows]
        prompt_ids = encoded_prompts(prompts, self.tokenizer, self.settings)
        ends = end_token_ids(self.model, self.tokenizer)
        ids, mask = self._padded(prompt_ids)
        generate: Any = self.model.generate
        was_training = self.model.training
        self.model.eval()
        try:
            with mixed_precision(self.settings, self.model.device):
                config = self._config(ends, temperature)
                generated = generate(input_ids=ids, attention_mask=mask, generation_config=config)
        finally:
            self.model.train(was_training)
        completion_ids = [until_end(each, ends) for each in generated[:, ids.shape[1] :].tolist()]
        return make_rollouts(
            rows,
            prompt_ids,
            completion_ids,
            decoded_completions(prompts, prompt_ids, completion_ids, self.tokenizer),
            generated_masks=None,
            sampling_logprobs=None,
            end_token_ids=ends,
        )

    def _padded(self, prompt_ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [B, P], padded on the left."""
        multiple = self.settings["pad_to_multiple_of"] or 1
        width = -(-max(map(len, prompt_ids)) // multiple) * multiple
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(each)) + each for each in prompt_ids])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompt_ids])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _config(self, ends: list[int], temperature: float) -> GenerationConfig:
        settings = self.settings
        options = {
            "max_new_tokens": settings["max_completion_length"],
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": ends,
            **{name: settings[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty")},
            "cache_implementation": settings.get("cache_implementation"),
            **mapping_of(settings.get("generation_kwargs")),
            **evaluation_options(temperature),
        }
        return GenerationConfig(**options, disable_compile=True)


def encoded_prompts(
    prompts: list[Any], tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]
) -> list[list[int]]:
    """The ids of texts, or of messages under the chat template, as a trainer with these settings encodes them."""
    if isinstance(prompts[0], str):
        encoded: Any = tokenizer(text=prompts)
    else:
        options = mapping_of(settings.get("chat_template_kwargs"))
        encoded = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def decoded_completions(
    prompts: list[Any], prompt_ids: list[list[int]], completion_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> list[Any]:
    """The completions as texts, or as messages where the prompts are."""
    is_chat = not isinstance(prompts[0], str)
    if is_chat and tokenizer.response_template is not None:
        pairs = zip(prompt_ids, completion_ids, strict=True)
        return [[parse_response(tokenizer, ids, prefix=before)] for before, ids in pairs]
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    return [[{"role": "assistant", "content": text}] for text in texts] if is_chat else texts


def mixed_precision(settings: Mapping[str, Any], device: torch.device) -> AbstractContextManager[Any]:
    """What a trainer with these settings of `bf16` and `fp16` runs its model under."""
    if settings["bf16"] or settings["fp16"]:
        return torch.autocast(device.type, dtype=torch.bfloat16 if settings["bf16"] else torch.float16)
    return nullcontext()


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a completion: the tokenizer's, and those that the model declares."""
    return declared_ends(model.generation_config, tokenizer)


def declared_ends(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The same for the generation settings that are saved with a model."""
    declared = config.eos_token_id
    ends = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return ends if tokenizer.eos_token_id in ends else [tokenizer.eos_token_id, *ends]


def until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """The tokens up to and including the first that ends the completion; all of them where none does."""
    return ids[: next((place for place, each in enumerate(ids) if each in ends), len(ids)) + 1]


def mapping_of(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """GRPOConfig takes some mappings as JSON text too."""
    if isinstance(value, str):
        parsed: dict[str, Any] = json.loads(value)
        return parsed
    return value or {}
