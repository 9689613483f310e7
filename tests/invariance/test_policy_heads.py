"""The head is used through its own call, whatever kind of head it is: wrappers gather its weights by hooks on that."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from rlvr.policy import attach_token_stats
from tests.invariance.test_policy import SMALL, near, own_stats, sharp_model, stats_of, uneven_rows


def untied_model() -> PreTrainedModel:
    config = sharp_model().config
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    return Qwen3ForCausalLM(config).eval()


def model_with_bias() -> PreTrainedModel:
    torch.manual_seed(1)
    model = PhiForCausalLM(PhiConfig(**(SMALL | {"num_key_value_heads": 2}))).eval()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-2, 2, 16))
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": sharp_model,
    "untied": untied_model,
    "bias": model_with_bias,
}


def partition(*modules: torch.nn.Module) -> None:
    """Leaves these modules' weights empty outside of their own calls, as ZeRO-3 does by the same hooks."""
    parameters = {p for module in modules for p in module.parameters()}
    whole = {p: p.data for p in parameters}

    def gather(module: torch.nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data = whole[parameter].clone()

    def release(module: torch.nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.new_empty(0)

    for module in modules:
        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
        module.register_full_backward_pre_hook(gather)
        release(module)


def check_against_full_logits(model: torch.nn.Module, plain: torch.nn.Module) -> None:
    """Values and gradients of `model`'s statistics are those of the full logits of `plain`, which has its weights."""
    rows = uneven_rows()
    stats = stats_of(model, rows, 0.7)
    (stats.logprobs.sum() + 0.5 * stats.entropy.sum()).backward()
    for index, row in enumerate(rows):
        logprobs, entropy = own_stats(plain, row, 0.7)
        (logprobs.sum() + 0.5 * entropy.sum()).backward()
        near(stats.logprobs[index, : len(logprobs)], logprobs)
        near(stats.entropy[index, : len(entropy)], entropy)
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (expected[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.filterwarnings("ignore:Full backward hook")  # the embedding has no input with a gradient
@pytest.mark.parametrize("name", MODELS)
def test_weights_need_to_be_whole_only_within_the_call_of_their_module(name: str) -> None:
    model, plain = MODELS[name](), MODELS[name]()
    attach_token_stats(model)
    partition(model.get_output_embeddings(), model.get_input_embeddings())
    check_against_full_logits(model, plain)


def test_gradient_of_lora_reaches_the_adapters_alone() -> None:
    def adapted() -> torch.nn.Module:
        torch.manual_seed(2)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(sharp_model(), config).eval()

    model, plain = adapted(), adapted()
    attach_token_stats(model.get_base_model())
    check_against_full_logits(model, plain)
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert sum(p.grad.norm() for p in model.parameters() if p.grad is not None) > 1e-2
