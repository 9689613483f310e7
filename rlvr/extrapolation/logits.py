"""Extrapolation at decode time: the logits of two models, or of one with and without its adapter, as those of one."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from rlvr.adapters import with_adapter
from rlvr.config.schema import ModelConfig
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.checkpoints import named_base
from rlvr.extrapolation.operations import extrapolate
from rlvr.model import load_policy, load_tokenizer
from rlvr.model_paths import is_adapter

CausalLM = PreTrainedModel | PeftModel
Switch = BaseTunerLayer | AuxiliaryTrainingWrapper
LARGEST_ALPHA = 1e6  # so that no logits leave the range of float32


def extrapolated_logits(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """l = l_A + alpha (l_B - l_A) of raw logits, arXiv 2601.04537: p ~ p_B (p_B / p_A)^(alpha - 1).

    Any shape; float32, or float64 where one of them is. `alpha` 0 gives l_A and 1 gives l_B, bit for bit. A token that
    both models rule out, with a logit of -inf, stays ruled out for any `alpha`.
    """
    dtype = torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)
    base, tuned = base.to(dtype), tuned.to(dtype)
    return torch.where(base == tuned, tuned, extrapolate(base, tuned, alpha))


class PairedCache(Cache):
    """The caches of both models; it holds the layers of both, so that beams, crops and repeats reach both."""

    def __init__(self, tuned: Cache, base: Cache) -> None:
        super().__init__(layers=[*tuned.layers, *base.layers])
        self.tuned, self.base = tuned, base


class ExtrapolatedLM(PreTrainedModel, GenerationMixin):
    """A causal LM with the logits l_A + alpha (l_B - l_A) of a base A and a tuned model B; `generate` works as always.

    Both read the same tokens, each with a cache of its own. Temperature, top-p and all other settings of `generate` act
    on the extrapolated logits, in float32; its defaults, the end tokens among them, are those of the tuned model. With
    `base` None, the base is the tuned PEFT model with its adapter off, and one set of weights is in memory. Both models
    are put in evaluation mode.

    Raises ExtrapolationError for an alpha that is NaN or beyond 10^6, models whose vocabularies differ in size, and
    adapters that cannot be switched off.
    """

    # What the two models run with was decided when they were loaded.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    base: CausalLM | None
    tuned: CausalLM

    def __init__(self, base: CausalLM | None, tuned: CausalLM, alpha: float) -> None:
        _check_alpha(alpha)
        own = _without_adapter(tuned)
        super().__init__(copy.deepcopy(own.config))
        self.generation_config = copy.deepcopy(own.generation_config)
        if base is not None:
            _check_vocabulary_sizes(_without_adapter(base), own)
        self.base, self.tuned, self.alpha = base, tuned, alpha
        self._switches = _switches(tuned) if base is None else []
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: Literal[True] = True,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of tokens [B, T], or of the last `logits_to_keep` of them, in float32.

        `attention_mask` [B, P + T] and `position_ids` [B, T] are those of transformers' causal LMs, and so is the use
        of `past_key_values` of P tokens: none at first, then what the call before returned. Raises ExtrapolationError
        for a cache that is not of this kind.
        """
        tuned_cache, base_cache = _caches(past_key_values)
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }
        tuned = self.tuned(**given, past_key_values=tuned_cache)
        with self._as_base() as model:
            base = model(**given, past_key_values=base_cache)
        caches = (tuned.past_key_values, base.past_key_values)
        logits = extrapolated_logits(base.logits, tuned.logits, self.alpha)
        return CausalLMOutputWithPast(
            logits=cast(torch.FloatTensor, logits),
            past_key_values=None if None in caches else PairedCache(*caches),
        )

    @contextmanager
    def _as_base(self) -> Iterator[CausalLM]:
        if self.base is not None:
            yield self.base
            return
        # PEFT's own switches also set what each weight's gradient needs, which takes a good part of a token's time.
        for layer in self._switches:
            layer._disable_adapters = True
        try:
            yield self.tuned
        finally:
            for layer in self._switches:
                layer._disable_adapters = False

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ExtrapolationError(
            "Extrapolated logits are no weights that could be saved; write weights with rlvr extrapolate weights."
        )


def load_extrapolated(
    base: str,
    tuned: str,
    alpha: float,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
) -> tuple[ExtrapolatedLM, PreTrainedTokenizerBase]:
    """The extrapolated model of two saved ones, and the tokenizer of both, which pads on the left.

    Each is a Hub id, a built-in model, the folder of a saved model, or that of an adapter. A tuned adapter goes onto
    `base`, whatever base it names, and their weights are in memory once; if `base` is an adapter as well, each goes
    onto the base that it names. Raises UserError for models that are not there or do not load, CheckpointError for
    adapters that do not fit, and ExtrapolationError for tokenizers that give other ids to the same tokens.
    """
    _check_alpha(alpha)
    is_shared = is_adapter(tuned) and not is_adapter(base)
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    base_config = ModelConfig(path=_weights_path(base), **settings)
    tokenizer = load_tokenizer(base_config, base)
    if is_shared:
        return ExtrapolatedLM(None, with_adapter(load_policy(base_config, base), tuned), alpha), tokenizer
    tuned_config = ModelConfig(path=_weights_path(tuned), **settings)
    tuned_tokenizer = load_tokenizer(tuned_config, tuned)
    check_same_tokens(tokenizer, tuned_tokenizer)
    below, above = load_policy(base_config, base), load_policy(tuned_config, tuned)
    return (
        ExtrapolatedLM(
            with_adapter(below, base) if is_adapter(base) else below,
            with_adapter(above, tuned) if is_adapter(tuned) else above,
            alpha,
        ),
        tuned_tokenizer,
    )


def _weights_path(path: str) -> str:
    """Where the full weights are: of an adapter, those of the base that it names."""
    return str(named_base(Path(path).expanduser())) if is_adapter(path) else path


def check_same_tokens(
    first: PreTrainedTokenizerBase,
    second: PreTrainedTokenizerBase,
    whose: tuple[str, str] = ("the base", "the tuned model"),
) -> None:
    """Raises ExtrapolationError unless both tokenizers have the same tokens under the same ids."""
    ours, theirs = first.get_vocab(), second.get_vocab()
    unlike = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if unlike:
        ids = [vocabulary.get(unlike[0], "missing") for vocabulary in (ours, theirs)]
        raise ExtrapolationError(
            f"The tokenizers of {whose[0]} and {whose[1]} differ in {len(unlike)} tokens, as in {unlike[0]!r} ({ids[0]}"
            f" and {ids[1]}), so their logits are not of the same tokens; give models of one family."
        )


def _check_alpha(alpha: float) -> None:
    if not abs(alpha) <= LARGEST_ALPHA:  # NaN fails the comparison too
        raise ExtrapolationError(f"alpha is {alpha:g}; give a finite number such as 1.5, {LARGEST_ALPHA:g} at most.")


def _without_adapter(model: CausalLM) -> PreTrainedModel:
    """The model inside; adapters that add tokens of their own, so that the caches differ in length, are refused."""
    if not isinstance(model, PeftModel):
        return model
    if not isinstance(model.base_model, BaseTuner):
        kind = model.active_peft_config.peft_type.value
        raise ExtrapolationError(
            f"Logits of {kind} adapters cannot be extrapolated; give one that can be merged: LoRA."
        )
    inside = model.get_base_model()
    assert isinstance(inside, PreTrainedModel)
    return inside


def _switches(model: CausalLM) -> list[Switch]:
    """The layers that have the adapter's weights; with all of them off, the model is its base."""
    if not isinstance(model, PeftModel):
        raise ExtrapolationError("The tuned model has no adapter to switch off, so there is no base; give both models.")
    assert isinstance(model.base_model, BaseTuner)
    tuner = type(model.base_model)
    biases = {vars(config).get("bias", "none") for config in model.peft_config.values()}
    if biases != {"none"} or tuner.disable_adapter_layers is not BaseTuner.disable_adapter_layers:
        raise ExtrapolationError(
            "The adapter has changed more than its layers, such as biases of the base, which switching it off does not"
            " undo; merge it, and give the base and the merged model."
        )
    return [layer for layer in model.modules() if isinstance(layer, Switch)]


def _check_vocabulary_sizes(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    sizes = [model.config.get_text_config().vocab_size for model in (base, tuned)]
    if sizes[0] != sizes[1]:
        raise ExtrapolationError(
            f"The base has a vocabulary of {sizes[0]} and the tuned model one of {sizes[1]}, so their logits are not of"
            " the same tokens; give models of one family."
        )


def _caches(given: Cache | None) -> tuple[Cache | None, Cache | None]:
    """For the tuned model and for the base; a model that is given none makes the kind that it needs."""
    if isinstance(given, PairedCache):
        return given.tuned, given.base
    if given is None:
        return None, None
    # What `generate` made before it knew of two models.
    if type(given) is DynamicCache and not given.offloading and given.get_seq_length() == 0:
        return given, None
    raise ExtrapolationError(
        f"ExtrapolatedLM makes its own two caches and cannot go on with a {type(given).__name__} that it did not make;"
        " leave cache_implementation and past_key_values out."
    )
