"""Gradient checkpointing and bfloat16 with the scored forward pass, of a whole policy and of an adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from rlvr.trainer import RLVRTrainer
from tests.conftest import sharp, tiny_model
from tests.distributed.worker import REGULARIZERS, one_step_trainer

Gradients = dict[str, torch.Tensor]


def policy(kind: str, confident: bool = True) -> Any:
    model = sharp(tiny_model()) if confident else tiny_model()
    if kind == "whole":
        return model
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(0.1 if "lora_B" in name else 1.0)  # a small change, as training makes it
    return model


class Gradient(TrainerCallback):
    """Of the first step."""

    found: Gradients

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self.found = {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients(folder: Path, model: Any, **changes: Any) -> tuple[Gradients, RLVRTrainer, int]:
    """Of one step on fixed rollouts; and how often the first layer ran with gradient."""
    trainer, callback, runs = one_step_trainer(folder, "dapo", 1, model, **changes), Gradient(), []
    trainer.add_callback(callback)
    layer = trainer._base(trainer.model).model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    trainer.train()
    assert callback.found.keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    return callback.found, trainer, sum(runs)


@pytest.mark.parametrize(("reentrant", "runs"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_checkpointing_gives_the_gradient_to_the_bit(tmp_path: Path, kind: str, reentrant: bool, runs: int) -> None:
    """Layers are run again for it; a reentrant checkpoint runs them without gradient first."""
    expected, _, before = gradients(tmp_path, policy(kind), regularizers=REGULARIZERS)
    saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    found, _, after = gradients(tmp_path, policy(kind), regularizers=REGULARIZERS, **saving)
    assert after == runs * before > 0
    assert sum(value.norm() for value in expected.values()) > 1e-2
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_bfloat16_gives_the_gradient_but_for_its_rounding(tmp_path: Path, kind: str) -> None:
    """Some 40 products lie one after the other, there and back; each is rounded by up to 2^-9, so sqrt(40) 2^-9 in all.

    Twice that is allowed. The logits are small: the rounding of large ones would count for as much again.
    """
    expected, _, _ = gradients(tmp_path, policy(kind, confident=False))
    found, trainer, _ = gradients(tmp_path, policy(kind, confident=False), bf16=True)
    assert trainer.model.dtype == torch.float32
    first, second = (torch.cat([value.flatten() for value in each.values()]) for each in (expected, found))
    error = ((first - second).norm() / first.norm()).item()
    assert 2**-12 < error < 2 * 40**0.5 * 2**-9
