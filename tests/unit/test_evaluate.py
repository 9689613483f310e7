"""Evaluation summaries and the metrics of a generation batch, on records made by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.evaluate import evaluate_rows, summarise
from rlvr.evaluation.records import PromptRecord
from rlvr.reporting.metrics import rollout_metrics
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction

NAN = math.nan
CONFIG = EvaluationConfig(num_samples=4, k=[1, 2, 4])


def record(
    prompt_id: int,
    outcomes: Sequence[float | None],
    greedy: float | None = 0.0,
    lengths: Sequence[int] = (1, 1, 1, 1),
    num_truncated: int = 0,
    rewards: Sequence[float | None] | None = None,
) -> PromptRecord:
    return PromptRecord(
        prompt_id,
        tuple(outcomes),
        greedy,
        tuple(outcomes if rewards is None else rewards),
        tuple(lengths),
        num_truncated,
    )


def test_summarise_by_hand() -> None:
    # Right of 4: 0, 1, 4. pass@2 of 1 right: 1 - C(3,2)/C(4,2) = 1/2.
    records = [
        record(0, [0.0, 0.0, 0.0, 0.0], greedy=0.0, lengths=[2, 4, 6, 8], num_truncated=3),
        record(1, [0.0, 1.0, 0.0, 0.0], greedy=1.0, lengths=[1, 1, 1, 1], rewards=[0.5, 1.5, 0.0, 0.0]),
        record(2, [1.0, 1.0, 1.0, 1.0], greedy=1.0, lengths=[3, 3, 3, 3], num_truncated=1),
    ]
    result = summarise("heldout", records, CONFIG)
    assert {name: each.value for name, each in result.estimates.items()} == pytest.approx(
        {"pass@1": 5 / 12, "pass@2": 0.5, "pass@4": 2 / 3, "greedy": 2 / 3}
    )
    assert (result.name, result.num_prompts, result.num_samples, result.num_unscored) == ("heldout", 3, 4, 0)
    assert result.mean_length == pytest.approx(36 / 12)
    assert result.truncated_frac == pytest.approx(4 / 12)
    assert result.mean_reward == pytest.approx(6 / 12)
    for each in result.estimates.values():
        assert each.low <= each.value <= each.high
    assert result.estimates["pass@1"].low < result.estimates["pass@1"].high
    assert result.to_json()["estimates"]["pass@2"]["value"] == pytest.approx(0.5)


def test_prompts_without_a_verdict_count_in_no_estimate() -> None:
    records = [
        record(0, [1.0, 1.0, 1.0, 1.0], greedy=1.0),
        record(1, [0.0, None, 0.0, 0.0], greedy=0.0, lengths=[9, 9, 9, 9], num_truncated=4),
        record(2, [0.0, 0.0, 0.0, 0.0], greedy=0.0),
    ]
    result = summarise("heldout", records, CONFIG)
    assert (result.num_prompts, result.num_unscored) == (3, 1)
    assert {name: each.value for name, each in result.estimates.items()} == pytest.approx(
        {"pass@1": 0.5, "pass@2": 0.5, "pass@4": 0.5, "greedy": 0.5}
    )
    assert result.mean_length == pytest.approx(44 / 12)  # lengths and truncation need no verdict
    assert result.truncated_frac == pytest.approx(4 / 12)
    assert result.mean_reward == pytest.approx(4 / 11)


def test_prompt_whose_greedy_answer_has_no_verdict_counts_in_no_estimate() -> None:
    """Every estimate is over the same prompts, so that they can be compared."""
    result = summarise("s", [record(0, [1.0] * 4, greedy=None), record(1, [0.0] * 4, greedy=1.0)], CONFIG)
    assert result.estimates["greedy"].value == 1.0
    assert result.estimates["pass@1"].value == 0.0
    assert result.num_unscored == 1


def test_nothing_scored_gives_no_estimate() -> None:
    result = summarise("s", [record(0, [None] * 4, greedy=None)], CONFIG)
    assert result.estimates == {}
    assert result.num_unscored == 1


def test_greedy_off_is_not_reported() -> None:
    result = summarise("s", [record(0, [1.0] * 4, greedy=None)], CONFIG.model_copy(update={"greedy": False}))
    assert set(result.estimates) == {"pass@1", "pass@2", "pass@4"}


# ---- evaluate_rows --------------------------------------------------------------------------------------------------


class ScriptedSampler:
    """Completion n of a prompt is its letters followed by n; greedy ones end in g."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], float]] = []
        self.drawn: dict[int, int] = {}

    def __call__(self, rows: Sequence[Mapping[str, Any]], *, temperature: float) -> Rollouts:
        self.calls.append(([row["prompt_id"] for row in rows], temperature))
        completions = []
        for row in rows:
            number = self.drawn.get(row["prompt_id"], 0)
            self.drawn[row["prompt_id"]] = number + (temperature > 0)
            completions.append(row["prompt"] + (str(number) if temperature > 0 else "g"))
        ids = [[1] * (row["prompt_id"] + 1) for row in rows]
        return Rollouts(
            group_ids=[row["prompt_id"] for row in rows],
            prompts=[row["prompt"] for row in rows],
            completions=completions,
            prompt_ids=ids,
            context_ids=ids,
            completion_ids=ids,
            generated_masks=[[True] * len(each) for each in ids],
            sampling_logprobs=None,
            truncated=[text.endswith("1") for text in completions],
            columns={"right": [row["right"] for row in rows]},
        )


def scripted_reward(completions: list[str], right: list[str], **_: Any) -> list[float | None]:
    return [None if "?" in c else 1.0 if c[-1] in r else 0.25 for c, r in zip(completions, right, strict=True)]


def test_evaluate_rows_keeps_samples_with_their_prompts() -> None:
    rows = [
        {"prompt": "a", "prompt_id": 0, "right": "02"},
        {"prompt": "b", "prompt_id": 1, "right": "g"},
        {"prompt": "?", "prompt_id": 2, "right": ""},
    ]
    sampler, done = ScriptedSampler(), []
    records = evaluate_rows(
        rows,
        sampler,
        [RewardFunction("reward", 2.0, scripted_reward)],
        RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward", "weight": 2.0}]}),
        EvaluationConfig(num_samples=3, k=[1], batch_size=7, temperature=0.6),
        done.append,
    )
    assert sampler.calls == [([0, 0, 0, 1, 1, 1], 0.6), ([0, 1], 0.0), ([2, 2, 2], 0.6), ([2], 0.0)]
    assert done == [6, 2, 3, 1]
    assert records == [
        PromptRecord(0, (1.0, 0.0, 1.0), 0.0, (2.0, 0.5, 2.0), (1, 1, 1), 1),
        PromptRecord(1, (0.0, 0.0, 0.0), 1.0, (0.5, 0.5, 0.5), (2, 2, 2), 1),
        PromptRecord(2, (None, None, None), None, (None, None, None), (3, 3, 3), 1),
    ]


# ---- metrics of a generation batch ----------------------------------------------------------------------------------


def test_rollout_metrics_by_hand() -> None:
    # Group 0 is solved, 1 unsolved, 2 mixed, 3 has no verdict at all; one of group 0 has none either.
    group_ids = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
    outcomes = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, NAN, NAN])
    rewards = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 2.0, NAN, NAN])
    second = torch.tensor([NAN, 0.5, 0.5, 0.5, 0.5, 0.5, 3.5, NAN])
    advantages = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0])
    metrics = rollout_metrics(
        ["exact", "format"], torch.stack([outcomes, second], dim=1), rewards, outcomes, group_ids, advantages
    )
    assert metrics == pytest.approx(
        {
            "reward/mean": 1.0,
            "reward/exact/std": 0.5,
            "reward/format/std": math.sqrt(1.25),
            "advantage/mean": 0.0,
            "advantage/std": 0.5,
            "outcome/pass_at_n": 2 / 3,
            "groups/equal_reward_frac": 1.0,
            "reward/std": math.sqrt(4 / 6),
            "outcome/pass_rate": 0.5,
            "outcome/unscorable_frac": 0.25,
            "advantage/abs_mean": 0.25,
            "advantage/zero_frac": 0.75,
            "reward/exact/mean": 0.5,
            "reward/format/mean": 1.0,
            "groups/solved_frac": 0.25,
            "groups/unsolved_frac": 0.25,
        }
    )


def test_rollout_metrics_without_any_verdict() -> None:
    nothing = torch.full((2,), NAN)
    metrics = rollout_metrics(["exact"], nothing.unsqueeze(1), nothing, nothing, torch.tensor([0, 0]), torch.zeros(2))
    unknown = {"reward/mean", "reward/std", "outcome/pass_rate", "outcome/pass_at_n"}
    unknown |= {"reward/exact/mean", "reward/exact/std"}
    assert {name for name, value in metrics.items() if math.isnan(value)} == unknown
    assert metrics["outcome/unscorable_frac"] == 1.0
    assert metrics["groups/solved_frac"] == metrics["groups/unsolved_frac"] == 0.0


def test_rollout_metrics_of_one_verdict_has_no_spread() -> None:
    one = torch.tensor([0.5, NAN])
    metrics = rollout_metrics(["exact"], one.unsqueeze(1), one, one, torch.tensor([0, 0]), torch.zeros(2))
    assert metrics["reward/std"] == 0.0


def test_empty_set_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="heldout"):
        summarise("heldout", [], EvaluationConfig())
