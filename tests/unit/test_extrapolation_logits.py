"""Logits A + alpha (B - A) at decode time: against scalar arithmetic, single models and merged weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, Qwen3ForCausalLM

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.logits import ExtrapolatedLM, extrapolated_logits, load_extrapolated
from tests.conftest import tiny_model
from tests.unit.logits_cases import LENGTH, MASK, PROMPTS, generated, gpt2, logits, qwen3, sliding, with_lora

INF = float("inf")
PAIRS: dict[str, Callable[[], tuple[PreTrainedModel | None, PreTrainedModel | PeftModel]]] = {
    "qwen3": lambda: (qwen3(0), qwen3(1)),
    "gpt2": lambda: (gpt2(0), gpt2(1)),
    "sliding": lambda: (sliding(0), sliding(1)),
    "two architectures": lambda: (qwen3(0), gpt2(1)),
    "adapter": lambda: (None, with_lora(qwen3(0), 1)),
}


def completion(row: Tensor) -> list[int]:
    """The tokens after the prompt, up to and including the end."""
    tokens: list[int] = row[PROMPTS.shape[1] :].tolist()
    return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


# ---- the formula -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.5, 3.0])
def test_formula(alpha: float) -> None:
    base, tuned = qwen3(0), qwen3(1)
    found = logits(ExtrapolatedLM(base, tuned, alpha), PROMPTS, MASK).flatten().tolist()
    both = (logits(model, PROMPTS, MASK).flatten().tolist() for model in (base, tuned))
    pairs = zip(*both, strict=True)
    assert found == pytest.approx([a + alpha * (b - a) for a, b in pairs], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_ends_are_the_models_themselves(alpha: float, pair: str) -> None:
    base, tuned = PAIRS[pair]()
    model = ExtrapolatedLM(base, tuned, alpha)
    expected: Any = tuned if alpha == 1.0 else (base or qwen3(0))
    assert torch.equal(logits(model, PROMPTS, MASK), logits(expected, PROMPTS, MASK))
    reference = generated(expected)
    assert torch.equal(generated(model), reference)
    torch.manual_seed(3)
    sampled = generated(model, do_sample=True, temperature=1.7, top_p=0.9)
    torch.manual_seed(3)
    assert torch.equal(sampled, generated(expected, do_sample=True, temperature=1.7, top_p=0.9))
    assert not torch.equal(sampled, reference)


def test_defaults_of_generate_are_those_of_the_tuned_model() -> None:
    base, tuned = qwen3(0), qwen3(1)
    tuned.generation_config.max_new_tokens = 4
    tuned.generation_config.repetition_penalty = 3.0
    base.generation_config.max_new_tokens = 6
    found = ExtrapolatedLM(base, tuned, 1.0).generate(PROMPTS, attention_mask=MASK)
    assert found.shape[1] == PROMPTS.shape[1] + 4
    assert torch.equal(found, tuned.generate(PROMPTS, attention_mask=MASK))


def test_linear_in_alpha() -> None:
    base, tuned = qwen3(0), qwen3(1)
    at = {alpha: logits(ExtrapolatedLM(base, tuned, alpha), PROMPTS) for alpha in (0.5, 1.5, 2.5)}
    assert torch.allclose(at[2.5] - at[1.5], at[1.5] - at[0.5], atol=1e-4)
    assert (at[2.5] - at[1.5]).abs().max() > 1.0


def test_arithmetic_is_in_float32() -> None:
    base, tuned = qwen3(0).to(torch.bfloat16), qwen3(1)
    found = logits(ExtrapolatedLM(base, tuned, 1.5), PROMPTS)
    assert found.dtype == torch.float32
    expected = logits(base, PROMPTS).double() + 1.5 * (logits(tuned, PROMPTS).double() - logits(base, PROMPTS).double())
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-5)
    halves = [torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([258.0], dtype=torch.bfloat16)]
    assert extrapolated_logits(halves[0], halves[1], 1.5).item() == 259.0  # not a number of bfloat16
    assert extrapolated_logits(halves[0], halves[1], 0.0).dtype == torch.float32
    assert extrapolated_logits(halves[0].double(), halves[1], 1.5).dtype == torch.float64


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_tokens_that_are_ruled_out(alpha: float) -> None:
    found = extrapolated_logits(torch.tensor([-INF, 1.0]), torch.tensor([-INF, 3.0]), alpha)
    assert found.tolist() == [-INF, 1.0 + 2.0 * alpha]
    by_one = extrapolated_logits(torch.tensor([-INF, 1.0]), torch.tensor([0.5, 3.0]), 1.0)
    assert by_one.tolist() == [0.5, 3.0]


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_caches_change_nothing(pair: str) -> None:
    model = ExtrapolatedLM(*PAIRS[pair](), 1.5)
    tokens = generated(model)
    assert torch.equal(tokens, generated(model, use_cache=False))
    out = generated(model, return_dict_in_generate=True, output_logits=True)
    mask = torch.cat([MASK, torch.ones_like(tokens[:, PROMPTS.shape[1] :])], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        forced = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
    assert forced.past_key_values is None
    for step, cached in enumerate(out.logits):
        going_on = [1 not in row[PROMPTS.shape[1] : PROMPTS.shape[1] + step] for row in tokens.tolist()]
        assert any(going_on)
        expected = forced.logits[:, PROMPTS.shape[1] - 1 + step]
        assert torch.allclose(cached[going_on], expected[going_on], atol=1e-3)


@pytest.mark.parametrize("pair", PAIRS)
def test_batch_with_padding_is_row_by_row(pair: str) -> None:
    model = ExtrapolatedLM(*PAIRS[pair](), 1.5)
    together = generated(model)
    for row, tokens, mask in zip(together, PROMPTS, MASK, strict=True):
        alone = generated(model, tokens[mask.bool()].unsqueeze(0), torch.ones(1, int(mask.sum()), dtype=torch.long))[0]
        whole = torch.cat([tokens[mask == 0], alone])
        assert completion(row) == completion(whole)


def sampled_by_hand(
    base: PreTrainedModel, tuned: PreTrainedModel, tokens: list[int], alpha: float, temperature: float, top_p: float
) -> list[int]:
    """Scalar arithmetic in float64 on whole sequences; only the draw is torch's."""
    drawn: list[int] = []
    while len(drawn) < LENGTH and drawn[-1:] != [1]:
        sequence = torch.tensor([tokens + drawn])
        pairs = zip(logits(base, sequence)[0, -1].tolist(), logits(tuned, sequence)[0, -1].tolist(), strict=True)
        scaled = [(a + alpha * (b - a)) / temperature for a, b in pairs]
        weights = [math.exp(each - max(scaled)) for each in scaled]
        probabilities = [each / sum(weights) for each in weights]
        kept: list[int] = []
        for token in sorted(range(len(scaled)), key=lambda index: -probabilities[index]):
            if sum(probabilities[each] for each in kept) < top_p:
                kept.append(token)
        total = sum(probabilities[token] for token in kept)
        shares = [probabilities[token] / total if token in kept else 0.0 for token in range(len(scaled))]
        drawn.append(int(torch.multinomial(torch.tensor([shares]), 1)))
    return drawn


@pytest.mark.parametrize(("alpha", "temperature", "top_p"), [(1.5, 1.0, 1.0), (2.0, 1.6, 0.7), (0.5, 0.8, 0.9)])
def test_sampling_is_that_of_hand_computed_logits(alpha: float, temperature: float, top_p: float) -> None:
    base, tuned = tiny_model(0), tiny_model(1)
    for model in (base, tuned):
        model.get_output_embeddings().weight.data.mul_(4.0)
    model = ExtrapolatedLM(base, tuned, alpha)
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        by_hand = sampled_by_hand(base, tuned, PROMPTS[1].tolist(), alpha, temperature, top_p)
        torch.manual_seed(seed)
        options: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        drawn = completion(generated(model, PROMPTS[1:2], MASK[1:2], **options)[0])
        assert drawn == by_hand
        found.append(tuple(drawn))
    assert len(set(found)) > 4
    assert any(drawn[-1] == 1 for drawn in found)


@pytest.fixture
def twins() -> tuple[ExtrapolatedLM, PreTrainedModel]:
    """Two models that differ in their heads alone, extrapolated, and the model whose head is on their line."""
    base = qwen3(4)
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(0.1 * base.lm_head.weight.detach().clone())
    tuned, between = copy.deepcopy(base), copy.deepcopy(base)
    noise = torch.randn(base.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tuned.lm_head.weight += 0.03 * noise
        between.lm_head.weight.lerp_(tuned.lm_head.weight, 1.5)
    return ExtrapolatedLM(base, tuned, 1.5), between.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 2.0, "num_return_sequences": 4},
        {"do_sample": True, "num_beams": 2, "temperature": 2.0, "top_p": 0.9},
        {"do_sample": True, "temperature": 3.0, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_every_way_to_decode(twins: tuple[ExtrapolatedLM, PreTrainedModel], options: dict[str, Any]) -> None:
    found = []
    for model in twins:
        torch.manual_seed(0)
        found.append(generated(model, **options))
    assert torch.equal(*found)
    assert not torch.equal(found[0][: len(PROMPTS)], generated(twins[0])[:, : found[0].shape[1]])
    assert len({len(completion(row)) for row in found[0]}) > 1  # some stop at the end token before others


def test_beams_of_different_bodies() -> None:
    model = ExtrapolatedLM(qwen3(0), qwen3(1), 1.5)
    assert torch.equal(generated(model, num_beams=4), generated(model, num_beams=4, use_cache=False))


@pytest.mark.parametrize("pair", ["qwen3", "two architectures", "adapter"])
def test_goes_on_from_its_cache(pair: str) -> None:
    model = ExtrapolatedLM(*PAIRS[pair](), 1.5)
    model.generation_config.eos_token_id = None
    start = generated(model, max_new_tokens=5, return_dict_in_generate=True)
    cache = start.past_key_values
    cache.crop(-2)
    assert cache.get_seq_length() == cache.base.get_seq_length() == PROMPTS.shape[1] + 2
    mask = torch.cat([MASK, torch.ones(len(MASK), 5, dtype=torch.long)], dim=1)
    rest = generated(model, start.sequences, mask, max_new_tokens=LENGTH - 5, past_key_values=cache)
    assert torch.equal(rest, generated(model))


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"modules_to_save": ["down_proj"]}, {"trainable_token_indices": [3, 5, 9]}],
    ids=str,
)
def test_adapter_is_its_merged_weights(options: dict[str, Any]) -> None:
    policy = with_lora(qwen3(0), 5, **options)
    model = ExtrapolatedLM(None, policy, 1.5)
    merged = with_lora(qwen3(0), 5, **options).merge_and_unload()
    reference = ExtrapolatedLM(qwen3(0), merged, 1.5)
    assert torch.allclose(logits(model, PROMPTS, MASK), logits(reference, PROMPTS, MASK), atol=1e-3)
    assert torch.equal(generated(model), generated(reference))
    assert (logits(model, PROMPTS) - logits(policy, PROMPTS)).abs().max() > 0.1
    assert model.num_parameters() == policy.num_parameters()  # one set of weights


def test_adapter_is_on_again_after_a_failure() -> None:
    policy = with_lora(qwen3(0), 5)
    model, expected = ExtrapolatedLM(None, policy, 1.5), logits(policy, PROMPTS)

    def fail(*_: Any) -> None:
        if not model.tuned.get_model_status().enabled:
            raise RuntimeError("out of memory")

    hook = policy.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        logits(model, PROMPTS)
    hook.remove()
    assert torch.equal(logits(policy, PROMPTS), expected)


# ---- refusals --------------------------------------------------------------------------------------------------------


def other_vocabulary() -> Qwen3ForCausalLM:
    model = tiny_model(1)
    model.resize_token_embeddings(20)
    return model


def prompt_tuned() -> PeftModel:
    return get_peft_model(tiny_model(0), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ExtrapolatedLM(tiny_model(0), tiny_model(1), math.nan), "alpha is nan; give a finite number"),
        (lambda: ExtrapolatedLM(tiny_model(0), tiny_model(1), INF), "alpha is inf; give a finite number"),
        (lambda: load_extrapolated("a", "b", math.nan), "alpha is nan"),
        (
            lambda: ExtrapolatedLM(tiny_model(0), other_vocabulary(), 1.5),
            "vocabulary of 16 and the tuned model one of 20",
        ),
        (lambda: ExtrapolatedLM(None, tiny_model(1), 1.5), "no adapter to switch off"),
        (lambda: ExtrapolatedLM(None, prompt_tuned(), 1.5), "PROMPT_TUNING adapters cannot be extrapolated"),
        (lambda: ExtrapolatedLM(prompt_tuned(), tiny_model(1), 1.5), "PROMPT_TUNING adapters cannot be extrapolated"),
        (lambda: ExtrapolatedLM(None, with_lora(tiny_model(0), 1, bias="all"), 1.5), "merge it"),
        (lambda: generated(ExtrapolatedLM(qwen3(0), qwen3(1), 2.0), cache_implementation="static"), "StaticCache"),
        (lambda: ExtrapolatedLM(qwen3(0), qwen3(1), 2.0).save_pretrained("out"), "rlvr extrapolate weights"),
    ],
)
def test_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ExtrapolationError, match=words):
        make()


def test_foreign_cache() -> None:
    model = ExtrapolatedLM(qwen3(0), qwen3(1), 2.0)
    cache = DynamicCache()
    model.tuned(input_ids=PROMPTS, past_key_values=cache)
    with pytest.raises(ExtrapolationError, match="makes its own two caches"):
        model(input_ids=PROMPTS[:, :1], past_key_values=cache)
