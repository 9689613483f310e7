"""Small models to extrapolate the logits of, and what tests ask them for."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3ForCausalLM,
)

from tests.conftest import WORDS, sharp, tiny_model

PROMPTS = torch.tensor([[0, 0, 0, 5, 9], [4, 7, 8, 3, 12], [0, 11, 6, 6, 10]])
MASK = (PROMPTS != 0).long()
LENGTH = 12


def gpt2(seed: int) -> GPT2LMHeadModel:
    """Its positions are absolute, so that it tells wrong ones."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=32, pad_token_id=0, eos_token_id=1
    )
    return sharp(GPT2LMHeadModel(config))


def sliding(seed: int) -> MistralForCausalLM:
    """It attends to the last 4 tokens only, and its cache holds no more."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=len(WORDS), sliding_window=4, num_key_value_heads=1, pad_token_id=0, eos_token_id=1, **sizes
    )
    return sharp(MistralForCausalLM(config))


def qwen3(seed: int) -> Qwen3ForCausalLM:
    return sharp(tiny_model(seed))


def with_lora(model: PreTrainedModel, seed: int, **options: Any) -> PeftModel:
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    policy = get_peft_model(model, LoraConfig(**settings | options))
    torch.manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")):
            torch.nn.init.normal_(parameter, std=0.5)
    return policy


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    return model.eval()(input_ids=tokens, attention_mask=mask).logits


def generated(model: PreTrainedModel, tokens: Tensor = PROMPTS, mask: Tensor = MASK, **options: Any) -> Any:
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "top_k": 0} | options
    return model.generate(tokens, attention_mask=mask, **settings)
