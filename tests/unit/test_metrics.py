"""Metrics of a step that are neither plain means nor sums, by hand."""

import math

import pytest
import torch
from accelerate import Accelerator

from rlvr.objectives.mismatch import finish_mismatch_extremes, mismatch_extremes
from rlvr.objectives.objective import MISMATCH_MAXIMA
from rlvr.reporting.metrics import majority_rate, rollout_metrics
from rlvr.reporting.step_sums import StepSums

NAN = math.nan


def test_rollout_metrics_by_hand() -> None:
    """Groups: 0 half right, 1 all right, 2 all wrong but with unequal rewards, 3 without any verdict."""
    group_ids = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    outcomes = torch.tensor([1.0, 1.0, 0.0, NAN, 0.0, 1.0, 0.0, NAN])
    rewards = torch.tensor([1.0, 1.0, 0.0, NAN, 0.0, 1.0, 0.2, NAN])
    components = torch.stack([outcomes, torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])], dim=1)
    advantages = torch.tensor([1.0, 0.0, -0.5, 0.0, -1.0, 0.0, 0.5, 0.0])
    metrics = rollout_metrics(("right", "form"), components, rewards, outcomes, group_ids, advantages)
    assert metrics["outcome/pass_rate"] == pytest.approx(3 / 6)
    assert metrics["outcome/pass_at_n"] == pytest.approx(2 / 3)  # of the groups with a verdict
    assert metrics["groups/solved_frac"] == pytest.approx(1 / 4)
    assert metrics["groups/unsolved_frac"] == pytest.approx(1 / 4)
    assert metrics["groups/equal_reward_frac"] == pytest.approx(2 / 4)
    assert metrics["advantage/mean"] == pytest.approx(0.0)
    assert metrics["advantage/std"] == pytest.approx(math.sqrt(2.5 / 8))
    assert metrics["reward/form/mean"] == pytest.approx(0.25)
    assert metrics["reward/form/std"] == pytest.approx(math.sqrt(0.25 * 0.75))
    assert metrics["reward/right/std"] == pytest.approx(0.5)


def test_extremes_of_rho_are_of_measured_loss_tokens() -> None:
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, NAN]])
    sampling = torch.tensor([[-1.5, -1.0, -99.0], [NAN, -1.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    found = finish_mismatch_extremes(mismatch_extremes(old, sampling, mask))
    assert found["sampler/rho_max"].item() == pytest.approx(math.exp(0.5))
    assert found["sampler/rho_min"].item() == pytest.approx(math.exp(-1.0))
    assert found["sampler/logprob_diff_max"].item() == pytest.approx(1.0)
    nothing = finish_mismatch_extremes(mismatch_extremes(old, sampling, torch.zeros_like(mask)))
    assert nothing["sampler/rho_max"].item() == nothing["sampler/rho_min"].item() == 1.0


def test_maxima_are_not_added_up() -> None:
    sums, high = StepSums(), MISMATCH_MAXIMA + "log_rho"
    for share, top in ((0.25, -3.0), (0.5, -1.0), (0.125, -2.0)):
        sums.add({"loss/policy": torch.tensor(share), high: torch.tensor(top)})
    flushed = sums.flush(Accelerator(cpu=True))
    assert flushed["loss/policy"].item() == 0.875
    assert flushed[high].item() == -1.0


def test_majority_is_of_answers_and_not_of_outcomes() -> None:
    rows = [
        (7, "<answer>4</answer>", 0.0),
        (8, "so \\boxed{9}", 1.0),
        (7, "work <answer> 5 </answer>", 1.0),
        (7, "<answer>3</answer>", 0.0),
        (7, "<answer>5</answer>", 1.0),
        (8, "8", 0.0),  # a tie: the first counts
        (9, "", 0.0),  # no answer
        (6, "x", None),  # no verdict
    ]
    table = dict(zip(("prompt_id", "completion", "outcome"), zip(*rows, strict=True), strict=True))
    assert majority_rate(table) == 1.0
    wrong = {**table, "outcome": [1.0 if value == 0.0 else 0.0 if value == 1.0 else None for value in table["outcome"]]}
    assert majority_rate(wrong) == 0.0
    assert math.isnan(majority_rate({name: [] for name in table}))
