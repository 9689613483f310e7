"""Each stage of the step on its own, and what the stages promise one another over several optimiser steps."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import Qwen3ForCausalLM

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.errors import RecipeError, RunAborted
from rlvr.evaluation.callback import EvaluationCallback
from rlvr.evaluation.sets import EvaluationSets
from rlvr.policy import completion_stats
from rlvr.trainer import RLVRTrainer
from rlvr.types import Microbatch, Rollouts, ScoredRollouts
from rlvr.verification import RewardFunction, Verdicts
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model, vowel_reward


def repeated_rows(num_prompts: int = 4, times: int = 4) -> list[dict[str, Any]]:
    return [row for row in letter_dataset(num_prompts) for _ in range(times)]


def interleaved_rows(num_prompts: int = 4, times: int = 4) -> list[dict[str, Any]]:
    return [row for _ in range(times) for row in letter_dataset(num_prompts)]


def scored(rewards: list[float | None], group_ids: list[int], outcomes: list[float | None] | None = None) -> Any:
    """Verdicts on completions of one token, as the verify stage would return them."""
    count = len(rewards)
    rollouts = Rollouts(
        group_ids=group_ids,
        prompts=["a"] * count,
        completions=["b"] * count,
        prompt_ids=[[3]] * count,
        context_ids=[[3]] * count,
        completion_ids=[[4]] * count,
        generated_masks=[[True]] * count,
        sampling_logprobs=None,
        truncated=[False] * count,
        columns={},
    )
    return ScoredRollouts(rollouts, Verdicts(("reward",), [[r] for r in rewards], rewards, outcomes or rewards))


# ---- stages on their own --------------------------------------------------------------------------------------------


def test_rollout_describes_every_completion(make_trainer: MakeTrainer) -> None:
    trainer, rows = make_trainer(), repeated_rows()
    rollouts = trainer.rollout(rows)
    assert rollouts.group_ids == [row["prompt_id"] for row in rows]
    assert rollouts.prompts == [row["prompt"] for row in rows]
    assert rollouts.columns == {"answer": [row["answer"] for row in rows]}
    words = [trainer.processing_class.decode(ids) for ids in rollouts.prompt_ids]
    assert words == rollouts.prompts
    assert rollouts.context_ids == rollouts.prompt_ids
    for ids, mask, truncated in zip(rollouts.completion_ids, rollouts.generated_masks, rollouts.truncated, strict=True):
        assert mask == [True] * len(ids)
        assert truncated == (ids[-1] != 1)
        assert len(ids) == 6 or not truncated
        assert 1 not in ids[:-1]
    assert 0 < sum(rollouts.truncated) < 16
    assert trainer._metrics["train"]["completions/truncated_frac"] == [sum(rollouts.truncated) / 16]


def test_verify_scores_every_completion_with_its_own_row(make_trainer: MakeTrainer) -> None:
    def answer_code(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(ord(letter)) for letter in answer]

    trainer, rows = make_trainer(reward=answer_code), interleaved_rows()
    verdicts = trainer.verify(trainer.rollout(rows)).verdicts
    assert verdicts.rewards == [float(ord(row["answer"])) for row in rows]
    assert verdicts.outcomes == [1.0] * 16  # correct_at is 1


def test_verify_sets_outcome_apart_from_reward(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(reward=lambda completions, **_: [0.25 * (i % 8) for i in range(len(completions))])
    verdicts = trainer.verify(trainer.rollout(repeated_rows())).verdicts
    assert verdicts.rewards == [0.25 * (i % 8) for i in range(16)]
    assert verdicts.outcomes == [float(i % 8 >= 4) for i in range(16)]


def test_advantages_by_hand_of_interleaved_groups(make_trainer: MakeTrainer) -> None:
    # Group 7: 1, 3, 5 (mean 3). Group 2: 10, 20, 60 (mean 30).
    advantages = make_trainer("dr_grpo").advantages(scored([1.0, 10.0, 3.0, 20.0, 60.0, 5.0], [7, 2, 7, 2, 2, 7]))
    assert advantages == pytest.approx([-2.0, -20.0, 0.0, -10.0, 30.0, 2.0])


def test_advantages_are_of_the_reward_and_not_of_the_outcome(make_trainer: MakeTrainer) -> None:
    result = make_trainer("dr_grpo").advantages(scored([0.0, 0.2, 0.4, 1.8], [0] * 4, [0.0, 0.0, 0.0, 1.0]))
    assert result == pytest.approx([-0.6, -0.4, -0.2, 1.2])


@pytest.mark.parametrize("preset", ["dapo", "dr_grpo"])
def test_unscorable_completions_are_neutral(make_trainer: MakeTrainer, preset: str) -> None:
    trainer = make_trainer(preset)
    among = trainer.advantages(scored([1.0, None, 0.0, 0.5, 1.0, 1.0], [0, 0, 0, 0, 1, 1]))
    without = trainer.advantages(scored([1.0, 0.0, 0.5, 1.0, 1.0], [0, 0, 0, 1, 1]))
    assert among[1] == 0.0
    assert among[:1] + among[2:] == pytest.approx(without)
    assert among[0] > 0.4
    assert trainer._metrics["train"]["outcome/unscorable_frac"] == pytest.approx([1 / 6, 0.0])
    assert trainer.latest_completions["reward"] == [1.0, 0.0, 0.5, 1.0, 1.0]


def test_too_many_unscorable_completions_abort_the_run(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.advantages(scored([1.0, 0.0, None, None], [0] * 4))  # exactly max_unscorable is allowed
    with pytest.raises(RunAborted, match="75%"):
        trainer.advantages(scored([1.0, None, None, None], [0] * 4))


def test_latest_completions_hold_the_advantage_of_each_row(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    rollouts = trainer.rollout(interleaved_rows())
    advantages = trainer.advantages(trainer.verify(rollouts))
    table = trainer.latest_completions
    assert table["advantage"] == advantages
    assert table["completion"] == rollouts.completions
    assert table["reward"] == vowel_reward(rollouts.completions)


def rows_of(batches: list[Microbatch]) -> list[tuple[tuple[int, ...], float]]:
    """(real tokens, advantage) of every row."""
    return [
        (tuple(ids[attends.bool()].tolist()), round(float(advantage), 5))
        for batch in batches
        for ids, attends, advantage in zip(batch.input_ids, batch.attention_mask, batch.advantages[:, 0], strict=True)
    ]


def expected_rows(rollouts: Rollouts, advantages: list[float]) -> list[tuple[tuple[int, ...], float]]:
    return [
        ((*context, *completion), round(advantage, 5))
        for context, completion, advantage in zip(
            rollouts.context_ids, rollouts.completion_ids, advantages, strict=True
        )
    ]


def test_microbatches_hold_every_row_with_its_advantage(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    rollouts = trainer.rollout(repeated_rows())
    advantages = [0.1 * index for index in range(16)]
    batches = trainer.microbatches(rollouts, advantages)
    assert [batch.input_ids.shape[0] for batch in batches] == [4] * 4
    assert sorted(rows_of(batches)) == sorted(expected_rows(rollouts, advantages))
    tokens = float(sum(len(ids) for ids in rollouts.completion_ids))
    for batch in batches:
        step = batch.denominator
        assert (step.num_loss_tokens, step.num_sequences, step.num_rows) == (tokens, 16.0, 16.0)
        assert step.max_completion_length == 6
        assert batch.old_logprobs is None  # on-policy: the ratio is 1 by construction
        assert batch.ref_logprobs is None


def test_denominator_counts_masked_rows_and_tokens_apart(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    rollouts = trainer.rollout(repeated_rows())
    masks = [[index not in (3, 8)] * len(ids) for index, ids in enumerate(rollouts.completion_ids)]
    step = trainer.microbatches(replace(rollouts, generated_masks=masks), [1.0] * 16)[0].denominator
    assert step.num_loss_tokens == sum(map(sum, masks))
    assert (step.num_sequences, step.num_rows) == (14.0, 16.0)


def test_windows_differ_from_one_generation_to_the_next(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=4)
    rollouts = trainer.rollout(repeated_rows())
    windows = []
    for step in (0, 0, 2):
        trainer.state.global_step = step
        windows.append(sorted(rows_of(trainer.microbatches(rollouts, [0.1 * i for i in range(16)])[:2])))
    assert windows[0] == windows[1]
    assert windows[0] != windows[2]


def test_two_windows_partition_the_generation_batch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(per_device_train_batch_size=4, gradient_accumulation_steps=2, steps_per_generation=4)
    rollouts = trainer.rollout(repeated_rows())
    advantages = [0.1 * index for index in range(16)]
    batches = trainer.microbatches(rollouts, advantages)
    windows = [batches[:2], batches[2:]]
    assert sorted(rows_of(batches)) == sorted(expected_rows(rollouts, advantages))
    assert len(batches) == 4
    for window in windows:
        step = window[0].denominator
        assert step == window[1].denominator
        assert step.num_rows == 8.0
        assert step.num_loss_tokens == sum(batch.loss_mask.sum().item() for batch in window)
        assert all(batch.old_logprobs is not None for batch in window)  # the second window is off-policy


def test_windows_do_not_cross_an_optimiser_step(make_trainer: MakeTrainer) -> None:
    with pytest.raises(RecipeError, match="steps_per_generation=3"):
        make_trainer(
            per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=3, num_generations=8
        )


# ---- over optimiser steps -------------------------------------------------------------------------------------------


def with_ratios(trainer: RLVRTrainer) -> list[list[float]]:
    """Trains; log ratios of every micro-batch, from old_logprobs and the weights at the time of its loss."""
    seen: list[list[float]] = []
    original = trainer._compute_loss

    def spy(model: torch.nn.Module, inputs: Microbatch) -> torch.Tensor:
        assert inputs.old_logprobs is not None
        with torch.no_grad():
            logprobs = completion_stats(model, inputs, trainer.temperature).logprobs
        seen.append((logprobs - inputs.old_logprobs)[inputs.loss_mask].tolist())
        return original(model, inputs)

    trainer._compute_loss = spy  # type: ignore[method-assign]
    trainer.train()
    return seen


def logged(trainer: RLVRTrainer, name: str) -> list[float]:
    return [log[name] for log in trainer.state.log_history if name in log]


def test_second_iteration_is_measured_against_the_first(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(model=sharp(tiny_model()), num_iterations=2, max_steps=4, temperature=0.7)
    ratios = with_ratios(trainer)
    largest = [max(abs(value) for value in micro) for micro in ratios]
    assert len(largest) == 8  # 4 steps of 2 micro-batches; a new generation every second step
    for first in (0, 4):
        assert max(largest[first : first + 2]) < 1e-5
        assert max(largest[first + 2 : first + 4]) > 1e-3
    k1 = logged(trainer, "kl/k1_old")
    assert [abs(value) > 1e-5 for value in k1] == [False, True, False, True]


def test_second_window_is_off_policy_and_the_first_is_not(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        model=sharp(tiny_model()),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        temperature=0.7,
    )
    largest = [max(abs(value) for value in micro) for micro in with_ratios(trainer)]
    assert len(largest) == 4
    assert max(largest[:2]) < 1e-5
    assert max(largest[2:]) > 1e-3


def test_temperature_reaches_the_loss(make_trainer: MakeTrainer) -> None:
    entropies = []
    for temperature in (1.0, 0.5):
        trainer = make_trainer(model=sharp(tiny_model()), max_steps=1, temperature=temperature)
        trainer.train()
        entropies += logged(trainer, "entropy/mean_token")
    assert entropies[1] < entropies[0] - 0.05


@pytest.mark.parametrize("preset", ["grpo", "dapo", "dr_grpo"])
def test_logged_step_does_not_depend_on_the_split(make_trainer: MakeTrainer, preset: str) -> None:
    logs = []
    for accumulation in (1, 4):
        trainer = make_trainer(
            preset,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss/policy", "entropy/mean_token", "grad_norm", "reward/mean", "kl/k1_old"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-4, abs=1e-7), name
    assert logs[0]["grad_norm"] > 1e-3
    assert logs[0]["entropy/mean_token"] == pytest.approx(math.log(16), rel=0.05)


def test_kl_penalty_is_against_the_weights_of_the_start(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    sharp(tiny_model()).save_pretrained(tmp_path / "model")
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    trainer = make_trainer(model=model, algorithm={"kl_coef": 0.05}, beta=0.05, max_steps=3, temperature=0.7)
    assert trainer.ref_model is not None
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    k3, loss = logged(trainer, "kl/k3_ref"), logged(trainer, "loss/kl")
    assert k3[0] == pytest.approx(0.0, abs=1e-9)
    assert k3[2] > 1e-6
    assert loss == pytest.approx([0.05 * value for value in k3], abs=1e-9)  # dapo: both are token means
    for name, parameter in trainer.ref_model.named_parameters():
        assert torch.equal(parameter, start[name]), name


# ---- evaluation in a run --------------------------------------------------------------------------------------------


def attach_evaluation(trainer: RLVRTrainer, folder: Path) -> EvaluationCallback:
    callback = EvaluationCallback(
        EvaluationSets(test={"heldout": letter_dataset(5)}),
        EvaluationConfig(num_samples=2, k=[1, 2], batch_size=4),
        [RewardFunction("reward", 1.0, vowel_reward)],
        RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]}),
        folder,
        Console(),
    )
    callback.sample = trainer.sample
    trainer.add_callback(callback)
    return callback


def test_evaluation_leaves_the_run_bit_identical(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    weights, logs = [], []
    for evaluated in (False, True):
        trainer = make_trainer(max_steps=3)
        if evaluated:
            attach_evaluation(trainer, tmp_path / "evaluations")
        trainer.train()
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        logs.append(logged(trainer, "reward/mean"))
    assert (tmp_path / "evaluations" / "before.json").exists()
    assert (tmp_path / "evaluations" / "after.json").exists()
    assert logs[0] == logs[1]
    for name, parameter in weights[0].items():
        assert torch.equal(parameter, weights[1][name]), name


def test_evaluation_leaves_every_generator_alone(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    callback = attach_evaluation(make_trainer(), tmp_path / "evaluations")
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    callback.run("before")
    assert (random.random(), np.random.random(), torch.rand(1).item()) == before


def test_sampling_outside_the_callback_moves_the_run(make_trainer: MakeTrainer) -> None:
    """Or the test above would pass without the callback's own random numbers."""
    weights = []
    for sampled in (False, True):
        trainer = make_trainer(max_steps=1)
        if sampled:
            torch.manual_seed(123)
            trainer.sample(letter_dataset(4).to_list(), temperature=1.0)
        else:
            torch.manual_seed(123)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert not torch.equal(*weights)


def test_sample_is_greedy_at_zero_and_restores_the_trainer(make_trainer: MakeTrainer) -> None:
    trainer, rows = make_trainer(model=sharp(tiny_model())), letter_dataset(6).to_list()
    trainer.model.train()
    config, options = trainer.generation_config, trainer.generation_kwargs
    torch.manual_seed(0)
    first = trainer.sample(rows, temperature=0.0).completion_ids
    torch.manual_seed(1)
    assert trainer.sample(rows, temperature=0.0).completion_ids == first
    assert trainer.sample(rows, temperature=1.0).completion_ids != first
    assert trainer.generation_config is config
    assert trainer.generation_kwargs is options
    assert trainer.model.training
    assert not trainer._metrics["eval"]
    assert not trainer._metrics["train"]
    plain = tiny_model()
    sharp(plain)
    for row, completion in zip(rows, first, strict=True):
        ids = trainer.processing_class(row["prompt"], return_tensors="pt").input_ids
        expected = plain.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, ids.shape[1] :]
        assert completion == expected.tolist()
