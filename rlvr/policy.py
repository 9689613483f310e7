"""The policy as the loss needs it: statistics of completion tokens, without logits of prompts or padding."""

import functools
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr.errors import UserError
from rlvr.ops.head_rows import LogitRule
from rlvr.ops.support import Support, kept_support, support_logprobs
from rlvr.ops.token_stats import LOGPROBS_AND_ENTROPY, StatsRequest, TokenStats, default_tile_tokens, token_stats
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


@dataclass(frozen=True)
class TokenQuery:
    """What is wanted of which completion tokens; N tokens at (row, position) of the batch."""

    rows: Tensor  # [N]
    positions: Tensor  # [N] whose hidden state predicts the token
    targets: Tensor  # [N]
    temperature: float
    request: StatsRequest
    support_of: Tensor | None = None  # [N] bool: tokens at whose position the kept tokens are wanted, without gradient
    scored_places: Tensor | None = None  # [m] indices into N, at which the tokens `scored_ids` [m, C] are scored
    scored_ids: Tensor | None = None


# A plain tuple, as wrappers hook their backward to the tensors they find in it: the fields of TokenStats, then counts,
# ids and logprobs of the support, then the scores [m, C]; None where not wanted.
Answer = tuple[Tensor | None, ...]


def _answer(
    hidden: Tensor, head: torch.nn.Linear, query: TokenQuery, logit_scale: float, softcap: float | None
) -> Answer:
    """The statistics at hidden [N, H], inside the forward pass of the model."""
    selected = hidden.to(head.weight.dtype)  # the head may be kept in float32
    tile_tokens = default_tile_tokens(head.weight.shape[0])
    rule = LogitRule(query.temperature, logit_scale, softcap)
    stats = token_stats(
        selected,
        head.weight,
        head.bias,
        query.targets,
        temperature=query.temperature,
        tile_tokens=tile_tokens,
        request=query.request,
        logit_scale=logit_scale,
        softcap=softcap,
    )
    support: Answer = (None, None, None)
    if query.support_of is not None:
        kept = kept_support(
            selected,
            head.weight,
            head.bias,
            query.support_of,
            rule=rule,
            request=query.request,
            tile_tokens=tile_tokens,
        )
        support = (kept.counts, kept.ids, kept.logprobs)
    scores = None
    if query.scored_places is not None and query.scored_ids is not None and len(query.scored_places):
        at_places = selected[query.scored_places]
        scores = support_logprobs(
            at_places, head.weight, head.bias, query.scored_ids, rule=rule, tile_tokens=tile_tokens
        )
    return (*(getattr(stats, field.name) for field in fields(stats)), *support, scores)


def attach_token_stats(model: PreTrainedModel) -> None:
    """Lets `model(..., token_query=query)` return an `Answer` about the queried tokens.

    The work is done inside the `forward` of the model, so that DDP, FSDP and DeepSpeed see it through their wrappers,
    and for the head inside the head's own. Other calls, `generate` among them, are unchanged. Raises UserError for
    heads that are no linear layer, or that scale or cap their logits in a way `head_adjustments` does not know.
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
    def with_token_stats(*args: Any, token_query: TokenQuery | None = None, **kwargs: Any) -> Any:
        if token_query is None:
            return forward(*args, **kwargs)
        hidden = model.base_model(*args, **kwargs, use_cache=False).last_hidden_state
        selected = hidden[token_query.rows, token_query.positions]
        # Asked for anew: FSDP1 may have put a wrapper, which gathers the weights, in the head's place.
        return model.get_output_embeddings()(selected, token_query=token_query)

    model.forward = with_token_stats


def _attach_to_head(head: torch.nn.Linear, logit_scale: float, softcap: float | None) -> None:
    """Lets `head(hidden [N, H], token_query=query)` return an `Answer`.

    Outside of the head's own call its weights may be partitioned (ZeRO-3) or sharded (FSDP): the hooks of that call
    gather them and see to their gradient.
    """
    forward = head.forward

    @functools.wraps(forward)
    def with_token_stats(hidden: Tensor, *, token_query: TokenQuery | None = None) -> Any:
        return forward(hidden) if token_query is None else _answer(hidden, head, token_query, logit_scale, softcap)

    head.forward = with_token_stats


@dataclass(frozen=True)
class CompletionRead:
    """One forward pass over a micro-batch, as its completion tokens need it."""

    stats: TokenStats  # [b, T], 0 at padding
    support: Support | None = None  # of the completion tokens, row by row; only those asked for keep any
    scores: Tensor | None = None  # [m, C] log-probabilities of the asked tokens


def read_completions(
    model: torch.nn.Module,
    batch: Microbatch,
    temperature: float,
    request: StatsRequest,
    *,
    support_of: Tensor | None = None,
    scored_mask: Tensor | None = None,
    scored_ids: Tensor | None = None,
) -> CompletionRead:
    """The requested statistics of the completion tokens at the sampler's temperature.

    `support_of` [b, T] bool asks for the tokens that the request's filter keeps there; `scored_ids` [m, C] for the
    log-probabilities of those tokens at the m positions of `scored_mask` [b, T].
    """
    mask = batch.completion_mask
    rows, tokens = mask.nonzero(as_tuple=True)
    query = TokenQuery(
        rows=rows,
        positions=batch.predictor_index[rows, tokens],
        targets=batch.completion_ids[rows, tokens],
        temperature=temperature,
        request=request,
        support_of=None if support_of is None else support_of[mask],
        scored_places=None if scored_mask is None else scored_mask[mask].nonzero().squeeze(1),
        scored_ids=scored_ids,
    )
    *values, counts, ids, logprobs, scores = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, token_query=query
    )

    def unflattened(flat: Tensor) -> Tensor:
        return flat.new_zeros(mask.shape).index_put((rows, tokens), flat)

    return CompletionRead(
        stats=TokenStats(*values).mapped(unflattened),
        support=None if counts is None else Support(counts, ids, logprobs),
        scores=scores,
    )


def completion_stats(
    model: torch.nn.Module, batch: Microbatch, temperature: float, request: StatsRequest = LOGPROBS_AND_ENTROPY
) -> TokenStats:
    """The requested statistics [b, T] of the completion tokens at the sampler's temperature; 0 at padding."""
    return read_completions(model, batch, temperature, request).stats
