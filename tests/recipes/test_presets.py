"""Every preset trains: the weights move, and everything that is logged is a number."""

import math

import pytest
import torch

from rlvr.config import PRESETS
from tests.conftest import MakeTrainer


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_two_optimiser_steps_of_one_rollout(make_trainer: MakeTrainer, preset: str) -> None:
    trainer = make_trainer(preset, steps_per_generation=4, max_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    logs = [log for log in trainer.state.log_history if "loss/policy" in log]
    assert len(logs) == 2
    for log in logs:
        assert all(math.isfinite(value) for value in log.values() if value is not None), log
    # The second step trains on rollouts of the first one's weights.
    assert logs[1]["kl/k1_old"] != 0.0
