"""The policy as the loss needs it: statistics of completion tokens, without logits of prompts or padding."""

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr.errors import UserError
from rlvr.ops.token_stats import TokenStats, default_tile_tokens, token_stats
from rlvr.types import Microbatch

# What the families of the installed transformers do to the logits, read in their modeling files: the configuration
# value by which they multiply (+1) or divide (-1), be it the logits or the hidden states before a head without bias.
LOGIT_SCALES: dict[str, tuple[str, int]] = {
    "cohere": ("logit_scale", 1),
    "cohere2": ("logit_scale", 1),
    "cohere2_moe": ("logit_scale", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
    "granite": ("logits_scaling", -1),
    "granite_swa": ("logits_scaling", -1),
    "granitemoe": ("logits_scaling", -1),
    "granitemoe_swa": ("logits_scaling", -1),
    "granitemoehybrid": ("logits_scaling", -1),
    "granitemoeshared": ("logits_scaling", -1),
    "hyperclovax": ("logits_scaling", 1),
    "minicpm3": ("logits_scaling", -1),
}
SOFTCAPS: dict[str, str] = {
    "gemma2": "final_logit_softcapping",
    "gemma3_text": "final_logit_softcapping",
    "gemma3n_text": "final_logit_softcapping",
    "gemma4_text": "final_logit_softcapping",
    "nanochat": "final_logit_softcapping",
    "recurrent_gemma": "logits_soft_cap",
    "vaultgemma": "final_logit_softcapping",
}
SCALE_NAMES = (
    "logit_scale",
    "logits_scaling",
    "logits_mup_width_multiplier",
    "output_multiplier",
    "lm_head_multiplier",
)
SOFTCAP_NAMES = ("final_logit_softcapping", "logits_soft_cap")


def head_adjustments(model: PreTrainedModel) -> tuple[float, float | None]:
    """(logit_scale, softcap) of the model's head. Raises UserError for a family whose adjustment is not known here."""
    config = model.config.get_text_config()
    scale_name, power = LOGIT_SCALES.get(config.model_type, ("", 1))
    softcap_name = SOFTCAPS.get(config.model_type, "")
    values = config.to_dict()
    # A scale of 1 changes nothing; a cap of 1 does.
    unknown = [name for name in SCALE_NAMES if name != scale_name and values.get(name) not in (None, 1)]
    unknown += [name for name in SOFTCAP_NAMES if name != softcap_name and values.get(name) is not None]
    for name in unknown:
        raise UserError(f"{type(model).__name__} uses {name}={values[name]}, which the loss cannot reproduce yet.")
    scale = getattr(config, scale_name) if scale_name else 1.0
    return float(scale) ** power, getattr(config, softcap_name) if softcap_name else None


def attach_token_stats(model: PreTrainedModel) -> None:
    """Lets `model(..., token_query=(rows, positions, targets, temperature))` return (logprobs, entropy) [N].

    The N queried tokens are read at (row, position) of the batch. The work is done inside the `forward` of the model,
    so that DDP, FSDP and DeepSpeed see it through their wrappers, and for the head inside the head's own. Other calls,
    `generate` among them, are unchanged. Raises UserError for heads that are no linear layer, or that scale or cap
    their logits in a way `head_adjustments` does not know.
    """
    logit_scale, softcap = head_adjustments(model)
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"The output head is a {type(head).__name__}: its log-probabilities need a plain linear layer, so keep"
            " adapters and quantisation off it."
        )
    _attach_to_head(head, logit_scale, softcap)
    forward = model.forward

    @functools.wraps(type(model).forward)
    def with_token_stats(
        *args: Any, token_query: tuple[Tensor, Tensor, Tensor, float] | None = None, **kwargs: Any
    ) -> Any:
        if token_query is None:
            return forward(*args, **kwargs)
        rows, positions, targets, temperature = token_query
        hidden = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        # Asked for anew: FSDP1 may have put a wrapper, which gathers the weights, in the head's place.
        return model.get_output_embeddings()(hidden[rows, positions], token_targets=targets, temperature=temperature)

    model.forward = with_token_stats


def _attach_to_head(head: torch.nn.Linear, logit_scale: float, softcap: float | None) -> None:
    """Lets `head(hidden [N, H], token_targets=[N], temperature=...)` return (logprobs, entropy) [N].

    Outside of the head's own call its weights may be partitioned (ZeRO-3) or sharded (FSDP): the hooks of that call
    gather them and see to their gradient.
    """
    forward = head.forward

    @functools.wraps(forward)
    def with_token_stats(hidden: Tensor, *, token_targets: Tensor | None = None, temperature: float = 1.0) -> Any:
        if token_targets is None:
            return forward(hidden)
        stats = token_stats(
            hidden.to(head.weight.dtype),  # the head may be kept in float32
            head.weight,
            head.bias,
            token_targets,
            temperature=temperature,
            tile_tokens=default_tile_tokens(head.weight.shape[0]),
            logit_scale=logit_scale,
            softcap=softcap,
        )
        return stats.logprobs, stats.entropy  # a plain tuple: wrappers hook their backward to the tensors they find

    head.forward = with_token_stats


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
