"""The filter of groups inside the trainer: what it takes from the step, and that a resumed run goes on as before."""

import json
from pathlib import Path

import pytest
import torch

from rlvr.objectives.group_filter import StdFilter
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model
from tests.unit.test_trainer_stages import scored

# Group 7 deviates by 0.5, group 2 by 0.05, group 5 not at all.
REWARDS, GROUPS = [1.0, 0.5, 0.0, 0.6, 1.0, 1.0], [7, 2, 7, 2, 5, 5]


def test_dropped_groups_have_no_advantage_and_are_counted(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("dr_grpo", algorithm={"group_filter": "std_ema"})
    trainer.group_filter = StdFilter(step=10, ema=0.2)
    assert trainer.advantages(scored(REWARDS, GROUPS)) == pytest.approx([0.5, 0.0, -0.5, 0.0, 0.0, 0.0])
    assert trainer._metrics["train"]["groups/filtered_frac"] == pytest.approx([2 / 3])
    assert trainer._metrics["train"]["advantage/zero_frac"] == pytest.approx([4 / 6])
    assert trainer.latest_completions["advantage"] == pytest.approx([0.5, 0.0, -0.5, 0.0, 0.0, 0.0])


def test_every_group_is_trained_on_at_first_and_without_a_filter(make_trainer: MakeTrainer) -> None:
    plain = make_trainer("dr_grpo")
    expected = plain.advantages(scored(REWARDS, GROUPS))
    assert expected[1] != 0.0
    assert "groups/filtered_frac" not in plain._metrics["train"]
    trainer = make_trainer("dr_grpo", algorithm={"group_filter": "std_ema"})
    assert trainer.advantages(scored(REWARDS, GROUPS)) == expected
    assert trainer._metrics["train"]["groups/filtered_frac"] == [0.0]


def test_advantages_of_tokens_are_dropped_with_their_groups(make_trainer: MakeTrainer) -> None:
    penalties = [torch.tensor([0.1 * i]) for i in range(6)]
    found = []
    for ema in (0.0, 0.2):
        trainer = make_trainer("reinforce_pp", algorithm={"group_filter": "std_ema"})
        trainer.group_filter = StdFilter(step=10, ema=ema)
        found.append(torch.cat(trainer.advantages(scored(REWARDS, GROUPS), penalties)))
    whole, filtered = found
    assert (whole != 0).all()
    kept = torch.tensor([True, False, True, False, False, False])
    assert torch.equal(filtered, torch.where(kept, whole, 0.0))


def test_resumed_run_filters_as_the_whole_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    settings = {"algorithm": {"group_filter": "std_ema"}, "dataset": letter_dataset(64)}  # 16 steps in an epoch
    settings |= {"save_strategy": "steps", "save_steps": 9, "max_steps": 15}
    whole = make_trainer(model=sharp(tiny_model()), **settings)
    whole.train()
    filtered = [log["groups/filtered_frac"] for log in whole.state.log_history if "groups/filtered_frac" in log]
    assert filtered[:10] == [0.0] * 10
    assert max(filtered[10:]) > 0
    state = json.loads((tmp_path / "checkpoint-9" / "plugins.json").read_text())["group_filter"]
    assert state["step"] == 9
    assert state["ema"] > 0

    resumed = make_trainer(model=sharp(tiny_model()), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert resumed.group_filter == whole.group_filter
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name
