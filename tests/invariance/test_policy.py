"""Statistics of completion tokens: the model's own, whatever else is in the micro-batch or however it is split."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    VaultGemmaConfig,
    VaultGemmaForCausalLM,
)

from rlvr.batching import collate
from rlvr.config.presets import PRESETS
from rlvr.errors import UserError
from rlvr.objectives.aggregation import Denominator
from rlvr.ops.token_stats import TokenStats
from rlvr.policy import attach_token_stats, completion_stats
from rlvr.types import Rollouts, TrainRow
from tests.conftest import MakeTrainer, tiny_model

UNUSED = Denominator(1.0, 1.0, 1.0, 1)
CPU = torch.device("cpu")
SIZES = [(1, 6), (9, 1), (4, 3), (2, 8), (7, 2)]  # prompt and completion tokens of each row


def sharp_model(seed: int = 0) -> Qwen3ForCausalLM:
    """Weights large enough that tokens, positions and temperatures change the distribution visibly."""
    model = tiny_model(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(12.0)
    return model.eval()


def patched_model(seed: int = 0) -> Qwen3ForCausalLM:
    model = sharp_model(seed)
    attach_token_stats(model)
    return model


def uneven_rows(seed: int = 0) -> list[TrainRow]:
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randint(1, 15) for _ in range(count)]

    return [TrainRow(ids(prompt), ids(count), [True] * count, 1.0) for prompt, count in SIZES]


def stats_of(model: torch.nn.Module, rows: list[TrainRow], temperature: float, pad_token_id: int = 0) -> TokenStats:
    return completion_stats(model, collate(rows, UNUSED, pad_token_id, CPU), temperature)


def own_stats(model: torch.nn.Module, row: TrainRow, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies [T] from the model's full logits on this row alone."""
    logits = model(input_ids=torch.tensor([row.context_ids + row.completion_ids])).logits[0]
    logits = logits[len(row.context_ids) - 1 : -1].double() / temperature
    probs = torch.softmax(logits, dim=-1)
    targets = torch.tensor(row.completion_ids)
    return probs[torch.arange(len(targets)), targets].log(), -(probs * probs.log()).sum(dim=-1)


def near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_stats_equal_the_models_own_logits(temperature: float) -> None:
    plain, rows = sharp_model(), uneven_rows()
    stats = stats_of(patched_model(), rows, temperature)
    for index, row in enumerate(rows):
        logprobs, entropy = own_stats(plain, row, temperature)
        near(stats.logprobs[index, : len(logprobs)], logprobs)
        near(stats.entropy[index, : len(entropy)], entropy)
        assert not stats.logprobs[index, len(logprobs) :].any()
        assert not stats.entropy[index, len(entropy) :].any()


def test_the_comparison_can_tell_temperatures_and_positions_apart() -> None:
    plain, (row, *_) = sharp_model(), uneven_rows()
    warm, cool = own_stats(plain, row, 1.0), own_stats(plain, row, 0.7)
    assert (warm[0] - cool[0]).abs().max() > 0.05
    assert (warm[1] - cool[1]).abs().max() > 0.05
    assert warm[0].std() > 0.1


def test_completion_stats_do_not_depend_on_the_other_rows() -> None:
    model, rows = patched_model(), uneven_rows()
    whole = stats_of(model, rows, 0.7)
    for index, row in enumerate(rows):
        alone = stats_of(model, [row], 0.7)
        length = len(row.completion_ids)
        near(whole.logprobs[index, :length], alone.logprobs[0])
        near(whole.entropy[index, :length], alone.entropy[0])


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_completion_stats_do_not_depend_on_row_order(order: list[int]) -> None:
    model, rows = patched_model(), uneven_rows()
    stats, moved = stats_of(model, rows, 0.7), stats_of(model, [rows[i] for i in order], 0.7)
    near(moved.logprobs, stats.logprobs[order])
    near(moved.entropy, stats.entropy[order])


def test_completion_stats_do_not_depend_on_the_padding_token() -> None:
    model, rows = patched_model(), uneven_rows()
    near(stats_of(model, rows, 1.0, pad_token_id=1).logprobs, stats_of(model, rows, 1.0, pad_token_id=0).logprobs)


def test_gradient_of_completion_stats_equals_the_models_own() -> None:
    rows, patched, plain = uneven_rows(), patched_model(), sharp_model()
    stats = stats_of(patched, rows, 0.7)
    (stats.logprobs.sum() + 0.5 * stats.entropy.sum()).backward()
    for row in rows:
        logprobs, entropy = own_stats(plain, row, 0.7)
        (logprobs.sum() + 0.5 * entropy.sum()).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in patched.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=2e-3, atol=2e-3, msg=name)


def uneven_rollouts() -> Rollouts:
    """16 completions in 4 interleaved groups; one is masked whole, one in part."""
    rng = random.Random(3)
    contexts = [[rng.randint(3, 15) for _ in range(rng.randint(2, 5))] for _ in range(16)]
    completions = [[rng.randint(1, 15) for _ in range(rng.randint(1, 6))] for _ in range(16)]
    masks = [[i != 5 and not (i == 9 and t == 0) for t in range(len(ids))] for i, ids in enumerate(completions)]
    return Rollouts(
        group_ids=[index % 4 for index in range(16)],
        prompts=[""] * 16,
        completions=[""] * 16,
        prompt_ids=contexts,
        context_ids=contexts,
        completion_ids=completions,
        generated_masks=masks,
        sampling_logprobs=None,
        truncated=[False] * 16,
        columns={},
    )


def accumulated(trainer: Any, accumulation: int) -> tuple[list[torch.Tensor], float, dict[str, float]]:
    """Gradient, loss and summed metrics of one optimiser step."""
    advantages = [((7 * i) % 5 - 2) / 2 for i in range(16)]
    batches = trainer.microbatches(uneven_rollouts(), advantages)
    assert len(batches) == accumulation
    trainer.model.train()
    loss = 0.0
    for batch in batches:
        share = trainer._compute_loss(trainer.model, batch)
        share.backward()
        loss += share.item()
    metrics = {name: sum(trainer._metrics["train"][name]) for name in ("loss/policy", "entropy/mean_token")}
    return [p.grad for p in trainer.model.parameters()], loss, metrics


@pytest.mark.parametrize("preset", PRESETS)
def test_split_into_micro_batches_changes_nothing(make_trainer: MakeTrainer, preset: str) -> None:
    results = [
        accumulated(
            make_trainer(
                preset, model=sharp_model(), per_device_train_batch_size=16 // n, gradient_accumulation_steps=n
            ),
            n,
        )
        for n in (1, 4)
    ]
    (whole, whole_loss, whole_metrics), (split, split_loss, split_metrics) = results
    assert split_loss == pytest.approx(whole_loss, rel=1e-4, abs=1e-6)
    assert split_metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)
    assert sum(g.norm() for g in whole) > 1e-2
    for expected, actual in zip(whole, split, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5)


def test_attaching_leaves_generation_and_plain_calls_unchanged() -> None:
    prompts = torch.tensor([[0, 0, 4, 5], [3, 4, 5, 6]])
    options: dict[str, Any] = {
        "attention_mask": (prompts != 0).long(),
        "do_sample": False,
        "max_new_tokens": 8,
        "pad_token_id": 0,
    }
    model = sharp_model()
    before, logits = model.generate(prompts, **options), model(prompts).logits
    attach_token_stats(model)
    assert torch.equal(model.generate(prompts, **options), before)
    assert torch.equal(model(prompts).logits, logits)
    assert before[:, 4:].unique().numel() > 1


SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


# MiniCPM3 attends through low-rank projections.
MLA: dict[str, Any] = SMALL | {
    "num_key_value_heads": 2,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}


def scaled_models() -> dict[str, Callable[[], PreTrainedModel]]:
    """Models that scale or cap their logits, by what they use; weights large enough that a cap shows."""
    three_layers = SMALL | {"num_hidden_layers": 3}
    return {
        "final_logit_softcapping": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.5)),
        "cap of one": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=1.0)),
        "cap of gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, final_logit_softcapping=0.5)),
        "cap of nanochat": lambda: NanoChatForCausalLM(NanoChatConfig(**SMALL, final_logit_softcapping=0.5)),
        "cap of vaultgemma": lambda: VaultGemmaForCausalLM(VaultGemmaConfig(**SMALL, final_logit_softcapping=0.5)),
        "logits_soft_cap": lambda: RecurrentGemmaForCausalLM(
            RecurrentGemmaConfig(**three_layers, lru_width=16, logits_soft_cap=0.5)
        ),
        "logits_scaling": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
        "logits_scaling of a mixture": lambda: GraniteMoeForCausalLM(GraniteMoeConfig(**SMALL, logits_scaling=4.0)),
        "logits_scaling that multiplies": lambda: HyperCLOVAXForCausalLM(
            HyperCLOVAXConfig(**SMALL, logits_scaling=4.0)
        ),
        "logits_scaling as a property": lambda: MiniCPM3ForCausalLM(MiniCPM3Config(**MLA, dim_model_base=4)),
        "logit_scale": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=4.0)),
        "logit_scale of cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**SMALL, logit_scale=4.0)),
        "lm_head_multiplier": lambda: FalconH1ForCausalLM(
            FalconH1Config(**SMALL, lm_head_multiplier=4.0, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8)
        ),
    }


@pytest.mark.parametrize("name", scaled_models())
def test_heads_that_change_their_logits_are_right(name: str) -> None:
    torch.manual_seed(0)
    model = scaled_models()[name]().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=0.5)
    row = uneven_rows()[0]
    logprobs, entropy = own_stats(model, row, 0.7)
    attach_token_stats(model)
    stats = stats_of(model, [row], 0.7)
    near(stats.logprobs[0], logprobs)
    near(stats.entropy[0], entropy)
    gradient = torch.autograd.grad(stats.logprobs.sum(), model.get_output_embeddings().weight)[0]
    own = torch.autograd.grad(logprobs.sum(), model.get_output_embeddings().weight, retain_graph=True)[0]
    if not model.config.tie_word_embeddings:
        torch.testing.assert_close(gradient, own.to(gradient.dtype), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["logit_scale", "final_logit_softcapping", "output_multiplier"])
def test_adjustments_of_an_unknown_family_are_refused(name: str) -> None:
    model = tiny_model(0)
    setattr(model.config, name, 0.5)
    with pytest.raises(UserError, match=name):
        attach_token_stats(model)


def test_head_without_scaling_of_the_same_family_is_accepted() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=None)).eval()
    rows = uneven_rows()
    expected = [own_stats(model, row, 1.0)[0] for row in rows]
    attach_token_stats(model)
    stats = stats_of(model, rows, 1.0)
    for index, logprobs in enumerate(expected):
        near(stats.logprobs[index, : len(logprobs)], logprobs)


def test_bias_of_the_head_enters() -> None:
    model = PhiForCausalLM(PhiConfig(**(SMALL | {"num_key_value_heads": 2}))).eval()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-2, 2, 16))
    row = uneven_rows()[0]
    logprobs, entropy = own_stats(model, row, 0.7)
    attach_token_stats(model)
    stats = stats_of(model, [row], 0.7)
    near(stats.logprobs[0], logprobs)
    near(stats.entropy[0], entropy)
