"""The policy as the loss needs it: statistics of completion tokens, without logits of prompts or padding."""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr.errors import UserError
from rlvr.ops.token_stats import TokenStats, default_tile_tokens, token_stats
from rlvr.types import Microbatch

HEAD_ADJUSTMENTS = (  # configuration values by which some models scale or cap what their head computes
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "logits_mup_width_multiplier",
    "output_multiplier",
    "lm_head_multiplier",
)


def attach_token_stats(model: PreTrainedModel) -> None:
    """Lets `model(..., token_query=(rows, positions, targets, temperature))` return (logprobs, entropy) [N].

    The N queried tokens are read at (row, position) of the batch. The work is done inside `forward` so that DDP, FSDP
    and DeepSpeed see it through their wrappers. Other calls, `generate` among them, are unchanged. Raises UserError for
    heads whose logits are scaled or capped after the product.
    """
    config = model.config.get_text_config().to_dict()
    for name in HEAD_ADJUSTMENTS:
        if config.get(name) not in (None, 1, 1.0):
            raise UserError(f"{type(model).__name__} uses {name}={config[name]}, which the loss cannot reproduce yet.")
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        head_type = type(model.get_output_embeddings()).__name__
        raise UserError(
            f"The output head is a {head_type}: its log-probabilities need a plain linear layer, so keep"
            " adapters and quantisation off it."
        )
    forward = model.forward

    @functools.wraps(type(model).forward)
    def with_token_stats(
        *args: Any, token_query: tuple[Tensor, Tensor, Tensor, float] | None = None, **kwargs: Any
    ) -> Any:
        if token_query is None:
            return forward(*args, **kwargs)
        rows, positions, targets, temperature = token_query
        hidden = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        selected = hidden[rows, positions].to(head.weight.dtype)  # the head may be kept in float32
        tile_tokens = default_tile_tokens(head.weight.shape[0])
        stats = token_stats(selected, head.weight, head.bias, targets, temperature=temperature, tile_tokens=tile_tokens)
        return stats.logprobs, stats.entropy  # a plain tuple: wrappers hook their backward to the tensors they find

    model.forward = with_token_stats


def completion_stats(model: torch.nn.Module, batch: Microbatch, temperature: float) -> TokenStats:
    """Log-probability and entropy [b, T] of the completion tokens at the sampler's temperature; 0 at padding."""
    rows, tokens = batch.completion_mask.nonzero(as_tuple=True)
    logprobs, entropy = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        token_query=(rows, batch.predictor_index[rows, tokens], batch.completion_ids[rows, tokens], temperature),
    )

    def unflattened(values: Tensor) -> Tensor:
        return values.new_zeros(batch.completion_mask.shape).index_put((rows, tokens), values)

    return TokenStats(unflattened(logprobs), unflattened(entropy))
