"""The memory arithmetic: numbers worked out by hand on a toy, tensors that real layers keep, and laws."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from rlvr.ops.token_stats import default_tile_tokens
from rlvr.scaling import activations, backends
from rlvr.scaling.architecture import (
    KNOWN,
    Architecture,
    adapter_parameters,
    linear_parameters,
    of_config,
    of_size,
    parameters,
)
from rlvr.scaling.estimate import STAGES, Estimate, estimate, estimates
from rlvr.scaling.workload import Workload

TOY = Architecture("toy", 8, 2, 2, 1, 4, 16, 32, tied=True, head_norms=True)  # query 8, key 4
FULL = Workload(batch=2, prompt_length=3, completion_length=2)  # 5 tokens a row, 10 in all, 4 of completions
LORA = replace(FULL, lora_rank=2)
QWEN8B = KNOWN["Qwen3-8B"]


def test_parameters_by_hand() -> None:
    # a layer: 8x8 + 2 (8x4) + 8x8 + 3 (8x16) = 576; norms 2x8 + 2x4 = 24; embedding 32x8 = 256; final norm 8
    assert linear_parameters(TOY) == 2 * 576
    assert parameters(TOY) == 2 * (576 + 24) + 256 + 8
    assert parameters(replace(TOY, tied=False)) == 1464 + 256
    # in + out: 16 + 12 + 12 + 16 + 24 + 24 + 24 = 128
    assert adapter_parameters(TOY, 2) == 2 * 2 * 128


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen3-0.6B", 0.596),
        ("Qwen3-8B", 8.191),
        ("Qwen2.5-72B", 72.70),
        ("Llama-3.2-1B", 1.236),
        ("Llama-3.1-8B", 8.030),
        ("Llama-3.1-70B", 70.55),
    ],
)
def test_parameters_of_public_models(name: str, billions: float) -> None:
    assert parameters(KNOWN[name]) / 1e9 == pytest.approx(billions, abs=0.01 if billions > 10 else 0.001)


@pytest.mark.parametrize("family", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_a_real_model(family: Any, tied: bool) -> None:
    config = family(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
        attention_bias=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert parameters(of_config(config.to_dict(), "real")) == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("size", ["1B", "3B", "7B", "13B", "20B", "50B", "70B"])
def test_interpolated_size(size: str) -> None:
    sizes = of_size(size)
    assert parameters(sizes) / 1e9 == pytest.approx(float(size[:-1]), rel=0.03)
    assert "interpolated between" in sizes.name
    assert sizes.hidden % 128 == sizes.intermediate % 128 == sizes.heads % sizes.kv_heads == 0


def test_size_of_the_ladder_is_that_model() -> None:
    assert of_size("8b") is KNOWN["Qwen3-8B"]
    assert of_size("600M") is KNOWN["Qwen3-0.6B"]
    assert not of_size("7B").tied
    assert of_size("5B").tied


def test_activations_by_hand() -> None:
    # norms 2 (4 + 2) 8 + 8 and 6 (8 + 4) + 4 x 3; inputs 2 x 2 x 8; attention 8x8 + 4x2 + 2x5; MLP 8x16
    assert activations.layer_saved(TOY, FULL) == 10 * (104 + 84 + 32 + 82 + 128)
    # frozen norms 2 x 4 x 8 + 8 and 4 (8 + 4) + 12; inputs 2 (8 + 8 + 8 + 8 + 8 + 8 + 16) and 7 x 2 x 2; MLP 6x16;
    # copies of 256 weights of adapters
    assert activations.layer_saved(TOY, LORA) == 10 * (72 + 60 + 128 + 28 + 82 + 96) + 512
    # float32 weights: norms 2 (4 + 4) 8 + 8, inputs 5 x 2 x 8
    assert activations.layer_saved(TOY, replace(FULL, weights="float32")) == 10 * (136 + 84 + 80 + 82 + 128)
    assert activations.layer_saved(replace(TOY, head_norms=False), FULL) == 10 * (104 + 32 + 82 + 128)
    # two layers of 2x8 a token, the final norm (4 + 2 + 2) 8 and the mask 5
    assert activations.activations(TOY, FULL) == 10 * (2 * 16 + 64 + 5)
    assert activations.activations(TOY, replace(FULL, checkpointing=False)) == 2 * 4300 + 10 * 69
    assert activations.forward_work(TOY, 10) == 10 * (64 + 112)
    assert activations.forward_work(replace(TOY, intermediate=32), 10) == 10 * (64 + 192)
    assert activations.layer_gradients(TOY, FULL) == 10 * (96 + 112)
    assert activations.backward_work(TOY, FULL) == 4300 + 2080


def test_head_by_hand() -> None:
    # 4 completion tokens: hidden states 2 x 4 x 8, a bfloat16 tile 2 x 4 x 32, three float32 blocks of 4 x 4 x 32
    assert activations.head_forward(TOY, FULL) == 64 + 256 + 3 * 512
    # states 8 x 4 x 8, gradient of the weights 4 x 256, tile and four blocks
    assert activations.head_backward(TOY, FULL) == 256 + 1024 + 256 + 4 * 512
    assert activations.head_backward(TOY, LORA) == 256 + 256 + 4 * 512
    # bfloat16 copies of 256 weights: one forward, two backward
    wide = replace(FULL, weights="float32")
    assert activations.head_forward(TOY, wide) == 1856 + 512
    assert activations.head_backward(TOY, wide) == 3584 + 1024


def test_tile_does_not_grow_with_the_batch() -> None:
    """8192 completion tokens of a vocabulary of 151,936 would be 2.3 GiB of logits, without gradient and copies."""
    work = Workload(batch=16, completion_length=512)
    rows = default_tile_tokens(151_936)
    assert rows == 441
    hidden = 8192 * 2 * 4096
    assert activations.head_forward(QWEN8B, work) == hidden + 2 * rows * 151_936 + 3 * 4 * 220 * 151_936


def test_sampling_by_hand() -> None:
    # two layers and one again, keys and values of 4 in 2 bytes, 2 rows of 5 tokens
    assert activations.kv_cache(TOY, FULL) == 3 * 2 * 4 * 2 * 10
    assert activations.kv_cache(TOY, replace(FULL, accumulation=3)) == 3 * 480
    assert activations.kv_cache(TOY, replace(FULL, accumulation=3, steps_per_generation=2)) == 2 * 480
    assert activations.generation(TOY, FULL) == 6 * 176
    assert activations.generation(replace(TOY, vocab=3200), FULL) == 3 * 4 * 2 * 3200


def test_held_by_hand() -> None:
    """1464 weights; a part is 366 on each of four GPUs."""
    assert backends.single(TOY, FULL, 1) == backends.Held(2928, 5856, 2928, 2928)
    assert backends.ddp(TOY, FULL, 4) == backends.Held(2928, 5856, 2928, 2928, buckets=2928)
    zero2 = backends.Held(2928, 2928, 732, 2196, masters=1464, reducing=1e9)
    assert backends.zero2(TOY, FULL, 4) == zero2
    zero3 = backends.zero3(TOY, FULL, 4)
    gathered = {"gathered": 2928, "gathered_rollout": 2928}
    assert zero3 == backends.Held(732, 2928, 0, 2928, masters=1464, buckets=1e9 + 732, **gathered)
    lean = backends.zero3(TOY, replace(FULL, gathers_to_sample=False), 4)
    assert lean == replace(zero3, gathered_rollout=2928)
    offloaded = backends.zero3_offload(TOY, FULL, 4)
    assert offloaded == backends.Held(0, 0, 0, 0, buckets=1e9, **gathered, cpu=20 * 1464)
    # two layers of 576 and the embedding of 256, in 2 bytes; gradients of a layer twice
    fsdp2 = backends.Held(1464, 2928, 1464, 1464, reducing=2304, gathered=2816, gathered_rollout=2816)
    assert backends.fsdp2(TOY, FULL, 4) == fsdp2


def test_zero3_of_a_model_beyond_its_limits() -> None:
    """8.19 billion weights: 1e9 are kept gathered, all of them to sample; the optimiser takes 1e9 at a time."""
    held = backends.zero3(QWEN8B, Workload(reference=True), 4)
    assert (held.gathered, held.gathered_reference, held.working) == (2e9, 2e9, 8e9)
    assert held.gathered_rollout == 2 * parameters(QWEN8B)
    assert backends.zero3(QWEN8B, Workload(gathers_to_sample=False), 4).gathered_rollout == 2e9


def test_held_with_adapters_by_hand() -> None:
    """512 weights of adapters, float32, beside 1464 frozen ones."""
    assert backends.single(TOY, LORA, 1) == backends.Held(2928 + 2048, 4096, 2048, 2048)
    quantized = replace(LORA, quantized=True)
    # 1152 weights of layers in 4 bits, 18 scales in 8, 18 / 256 scales of those in 32; 312 others in 2 bytes; adapters
    # bfloat16; the largest linear map is 8x16
    frozen = 576 + 18 + 18 / 256 * 4 + 624
    assert backends.single(TOY, quantized, 1) == backends.Held(
        frozen + 1024, 2048, 1024, 1024, gathered=256, gathered_rollout=256
    )
    zero2 = backends.zero2(TOY, LORA, 4)
    assert (zero2.weights, zero2.masters, zero2.states, zero2.gradients) == (2928 + 1024, 512, 1024, 256)
    zero3 = backends.zero3(TOY, LORA, 4)
    assert (zero3.weights, zero3.masters, zero3.states, zero3.buckets) == (732 + 256, 512, 1024, 1e9 + 256)
    fsdp2 = backends.fsdp2(TOY, LORA, 4)
    assert (fsdp2.weights, fsdp2.states, fsdp2.gradients, fsdp2.reducing) == (732 + 512, 1024, 512, 4 * 256)


def test_reference_by_hand() -> None:
    work = replace(FULL, reference=True)
    held = {name: each.held(TOY, work, 4) for name, each in backends.BACKENDS.items()}
    assert [each.reference for each in held.values()] == [2928, 2928, 2928, 732, 0, 732]
    assert held["fsdp2"].gathered_reference == held["zero3"].gathered_reference == 2928
    assert held["zero3_offload"].cpu == 20 * 1464 + 2928
    adapters = replace(work, lora_rank=2)
    assert backends.single(TOY, adapters, 1).reference == 0
    # float32 weights make a float32 reference, except where DeepSpeed turns both to bfloat16
    wide = replace(work, weights="float32")
    assert estimate(TOY, wide, 4, "ddp").stages["loss"].reference == 5856
    assert estimate(TOY, wide, 4, "zero2").stages["loss"].reference == 2928


def test_stages_by_hand() -> None:
    found = estimate(TOY, FULL, 1, "single")
    held = 2928 + 5856
    assert {stage: parts.total for stage, parts in found.stages.items()} == {
        "rollout": held + 480 + 1056,
        "scoring": held + 1760 + 1856,
        # all gradients, the first layer (its activations and gradients, and its input), the embedding's gradient
        "loss": held + 2928 + 6380 + 160 + 512,
        "optimiser": held + 2928 + 2928,
    }
    assert (found.peak_stage, found.peak, found.cpu) == ("loss", 18764, 0)


def test_loss_without_checkpointing_peaks_where_the_head_is() -> None:
    work = replace(FULL, checkpointing=False, batch=64)
    parts = estimate(TOY, work, 1, "single").stages["loss"]
    assert parts.gradients == 0
    assert parts.activations == activations.activations(TOY, work)
    assert parts.head == activations.head_backward(TOY, work)
    # With more micro-batches the gradients of those before are there as well.
    assert estimate(TOY, replace(work, accumulation=2), 1, "single").stages["loss"].gradients == 2928


def test_loss_of_adapters_peaks_in_the_last_layer() -> None:
    """Few gradients will come, so the fullest moment is the first layer that is computed again."""
    work = Workload(lora_rank=16)
    parts = estimate(QWEN8B, work, 1, "single").stages["loss"]
    assert (parts.gradients, parts.head) == (0, 0)
    saved, gradients = activations.layer_saved(QWEN8B, work), activations.layer_gradients(QWEN8B, work)
    assert parts.activations == activations.activations(QWEN8B, work) + saved + gradients
    plain = replace(work, checkpointing=False)
    parts = estimate(QWEN8B, plain, 1, "single").stages["loss"]
    assert parts.activations == activations.activations(QWEN8B, plain) + gradients


def test_float32_weights_are_cast() -> None:
    wide, narrow = replace(FULL, weights="float32"), FULL
    assert activations.cast_weights(TOY, wide) == 2 * 1152
    assert activations.cast_weights(TOY, narrow) == 0
    rollout = estimate(TOY, wide, 1, "single").stages["rollout"]
    assert rollout.sampling == 1056 + 2304
    assert rollout.weights == 5856


# ---- tensors that real layers keep ---------------------------------------------------------------------------------


def kept_bytes(family: Any, layers: int, work: Workload) -> int:
    """Bytes of the distinct tensors that a forward pass under bfloat16 keeps for its backward pass, without weights.

    Padding makes attention take a mask, as in a run.
    """
    config = family(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    model: Any = AutoModelForCausalLM.from_config(config).to(getattr(torch, work.weights))
    base = model.model
    if work.lora_rank is not None:
        adapters = LoraConfig(r=work.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, 64, (work.batch, work.length))
    mask = torch.ones_like(ids)
    mask[0, work.length // 2 :] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        output = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(each.nbytes() for each in kept.values())


@pytest.mark.parametrize("family", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}, {"weights": "float32"}], ids=str)
def test_layer_keeps_what_the_formula_says(family: Any, settings: dict[str, Any]) -> None:
    """What the second layer of a real model adds, to the byte; with float32 weights also the copies autocast makes."""
    sizes = Architecture("real", 64, 2, 8, 2, 16, 160, 64, True, head_norms=family is Qwen3Config)
    work = Workload(batch=3, prompt_length=20, completion_length=4, **settings)
    copies = activations.cast_weights(sizes, work) / 2
    measured = kept_bytes(family, 2, work) - kept_bytes(family, 1, work)
    assert activations.layer_saved(sizes, work) + copies == measured


# ---- laws ----------------------------------------------------------------------------------------------------------

LAWFUL = [KNOWN["Qwen3-0.6B"], QWEN8B, KNOWN["Qwen2.5-72B"]]


def peaks(sizes: Architecture, work: Workload, gpus: int) -> dict[str, Estimate]:
    return {each.backend: each for each in estimates(sizes, work, gpus)}


@pytest.mark.parametrize("sizes", LAWFUL, ids=lambda sizes: sizes.name)
@pytest.mark.parametrize("work", [Workload(), Workload(lora_rank=16), Workload(reference=True, accumulation=4)])
def test_more_gpus_never_need_more_each(sizes: Architecture, work: Workload) -> None:
    for fewer, more in ((2, 4), (4, 8), (8, 64)):
        small, large = peaks(sizes, work, fewer), peaks(sizes, work, more)
        for name in small:
            for stage in STAGES:
                assert large[name].stages[stage].total <= small[name].stages[stage].total, (name, stage)
        assert large["zero3"].peak < small["zero3"].peak


@pytest.mark.parametrize("sizes", LAWFUL, ids=lambda sizes: sizes.name)
@pytest.mark.parametrize("gpus", [1, 8])
def test_order_of_settings(sizes: Architecture, gpus: int) -> None:
    plain = peaks(sizes, Workload(), gpus)
    less = {
        "lora": peaks(sizes, Workload(lora_rank=16), gpus),
        "shorter": peaks(sizes, Workload(completion_length=64), gpus),
        "smaller": peaks(sizes, Workload(batch=4), gpus),
    }
    more = {
        "kl": peaks(sizes, Workload(reference=True), gpus),
        "all kept": peaks(sizes, Workload(checkpointing=False), gpus),
        "float32": peaks(sizes, Workload(weights="float32"), gpus),
        "accumulated": peaks(sizes, Workload(accumulation=8), gpus),
    }
    for name, each in plain.items():
        assert all(found[name].peak <= each.peak for found in less.values()), name
        assert all(found[name].peak >= each.peak for found in more.values()), name
    quantized = peaks(sizes, Workload(lora_rank=16, quantized=True), gpus)
    assert set(quantized) == ({"single", "ddp", "zero2"} if gpus > 1 else {"single"})
    assert all(quantized[name].peak < less["lora"][name].peak for name in quantized)


# A small model's share is less than the buckets of ZeRO-3.
@pytest.mark.parametrize("sizes", LAWFUL[1:], ids=lambda sizes: sizes.name)
def test_order_of_backends(sizes: Architecture) -> None:
    found = peaks(sizes, Workload(), 8)
    stages = {name: each.stages["optimiser"].total for name, each in found.items()}
    assert stages["ddp"] > stages["single"]
    assert stages["zero2"] > stages["zero3"] > stages["zero3_offload"]
    assert found["zero3"].peak > found["zero3_offload"].peak
    assert all((each.cpu > 0) == (name == "zero3_offload") for name, each in found.items())
