"""What the trainer refuses at construction, and the head variants it must cope with."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlvr.errors import RecipeError, UserError
from tests.conftest import MakeTrainer, tiny_model


def test_kl_penalty_without_a_reference_is_refused_at_once(make_trainer: MakeTrainer) -> None:
    with pytest.raises(RecipeError, match="kl_coef"):
        make_trainer(algorithm={"kl_coef": 0.1})


def test_step_from_several_generations_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(RecipeError, match="multiple"):
        make_trainer(gradient_accumulation_steps=4, steps_per_generation=2)


@pytest.mark.filterwarnings("ignore")
def test_adapter_on_the_head_is_refused(make_trainer: MakeTrainer) -> None:
    """Its weights would neither be read by the loss nor get a gradient."""
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    with pytest.raises((UserError, ValueError), match=r"head|lm_head"):
        make_trainer(model=model)


def test_head_in_float32_on_a_bfloat16_model_trains(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(model=tiny_model().to(torch.bfloat16), cast_lm_head_to_fp32=True, max_steps=1)
    before = trainer.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.model.layers[0].mlp.up_proj.weight)
