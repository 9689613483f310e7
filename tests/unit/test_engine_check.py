"""The check of the engine: what it measures, which faults it finds, and that a run does not notice it."""

import io
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from rlvr.config.rollout import RolloutConfig
from rlvr.errors import RunAborted
from rlvr.rollout.agreement import agreement
from rlvr.rollout.engine_check import NUM_PROMPTS, EngineCheck
from rlvr.rollout.probe import MAX_TOKENS, probe
from rlvr.trainer import RLVRTrainer
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model
from tests.unit.separate_engine import with_separate_engine

pytestmark = pytest.mark.usefixtures("frozen_heap")
ENGINES = ["generate", "continuous", "separate"]
PAGED = {"use_transformers_continuous_batching": True}


def trainer_with(make_trainer: MakeTrainer, engine: str, **changes: Any) -> RLVRTrainer:
    """A trainer of a confident policy that samples with this engine."""
    changes = {"model": sharp(tiny_model()), "gradient_accumulation_steps": 1} | changes
    trainer = make_trainer(**(PAGED if engine == "continuous" else {}), **changes)
    return with_separate_engine(trainer)[0] if engine == "separate" else trainer


def checked(trainer: RLVRTrainer, console: Console | None = None, **settings: Any) -> EngineCheck:
    """The check of this trainer, as one of its callbacks."""
    check = EngineCheck(RolloutConfig.model_validate(settings), console or Console(quiet=True))
    check.host = trainer.engine_host()
    trainer.add_callback(check)
    return check


def weights_of(trainer: RLVRTrainer) -> list[Tensor]:
    return [each.detach().clone() for each in trainer.accelerator.unwrap_model(trainer.model).parameters()]


def logged(trainer: RLVRTrainer, prefix: str) -> list[dict[str, float]]:
    return [{k: v for k, v in log.items() if k.startswith(prefix)} for log in trainer.state.log_history[:-1]]


# ---- what it measures -----------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    trainer = torch.tensor([-1.0, -2.0, -3.0, -0.5])
    engine = torch.tensor([-1.0, -2.0 + math.log(2), -3.0 - math.log(3), float("nan")])
    found = agreement(trainer, engine)  # ratios 1, 1/2 and 3
    assert found.num_tokens == 3
    assert found.ratio_mean == pytest.approx(1.5)
    assert found.dev_mean == pytest.approx(2.5 / 3)
    assert (found.dev_q50, found.dev_q99, found.dev_max) == pytest.approx((0.5, 0.5 + 0.98 * 1.5, 2.0))
    assert found.metrics()["engine/ratio_mean"] == found.ratio_mean


def test_probabilities_that_are_wrong_show_in_the_deviation_and_not_in_the_mean_ratio() -> None:
    """Samples of q = (1/2, 1/2), scored by p = (3/4, 1/4): ratios 3/2 and 1/2, equally often."""
    found = agreement(torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log())
    assert found.ratio_mean == pytest.approx(1.0)
    assert found.dev_mean == pytest.approx(0.5)


def test_ratios_that_overflow_are_a_disagreement() -> None:
    found = agreement(torch.tensor([0.0, -1.0]), torch.tensor([-1e4, float("-inf")]))
    assert 1e8 < found.dev_mean < math.inf


@pytest.mark.parametrize("engine", ENGINES)
def test_probe_has_the_probabilities_that_tokens_were_drawn_by(make_trainer: MakeTrainer, engine: str) -> None:
    """Scored anew one completion at a time, by nothing of the trainer's."""
    trainer = trainer_with(make_trainer, engine, temperature=0.7, top_p=0.6, top_k=3)
    rows = letter_dataset(5)
    with trainer._aside():
        rollouts = probe(trainer, trainer.rollout, rows["prompt"], seed=4)
    assert rollouts.prompts == rows["prompt"]
    plain = sharp(tiny_model())
    least = 0.0
    for context, completion, reported in zip(
        rollouts.context_ids, rollouts.completion_ids, rollouts.sampling_logprobs or [], strict=True
    ):
        logits = plain(input_ids=torch.tensor([context + completion])).logits[0, len(context) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(reported), expected, rtol=0, atol=1e-5)
        least = min(least, *reported)
    assert least < -1.5  # not only the likeliest tokens: the recipe's top_p is not in the way
    assert max(map(len, rollouts.completion_ids)) == MAX_TOKENS


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_with_the_weights_in_training_agrees(make_trainer: MakeTrainer, engine: str) -> None:
    trainer = trainer_with(make_trainer, engine, temperature=0.7, top_p=0.9, top_k=5, min_p=0.01)
    output = io.StringIO()
    found = checked(trainer, Console(file=output, width=200), engine_tolerance=1e-4)
    trainer.train()
    first, second = logged(trainer, "engine/")
    assert first["engine/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert 0 <= first["engine/ratio_dev_q50"] <= first["engine/ratio_dev_q99"] <= first["engine/ratio_dev_max"] < 1e-4
    assert second == {}
    assert "at most 0.0001 is allowed" in output.getvalue()
    assert "mean |ratio - 1| of" in output.getvalue()
    assert NUM_PROMPTS <= found.check(2).num_tokens <= NUM_PROMPTS * MAX_TOKENS


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_that_a_recipe_leaves_out_are_no_disagreement(make_trainer: MakeTrainer, engine: str) -> None:
    setting = {"suppress_tokens": [7, 12]}
    trainer = trainer_with(make_trainer, engine, generation_kwargs=setting, repetition_penalty=1.0)
    if engine == "separate":
        trainer.vllm_generation.generation_kwargs = setting
    assert checked(trainer, engine_tolerance=1e-3).check(0).dev_max < 1e-4
    assert "suppress_tokens" in (trainer.vllm_generation if engine == "separate" else trainer).generation_kwargs


# ---- a run does not notice it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_training_is_bit_identical_with_and_without_it(make_trainer: MakeTrainer, engine: str) -> None:
    runs = []
    for when in ("off", "every_sync"):
        trainer = trainer_with(make_trainer, engine, max_steps=3)
        checked(trainer, check_engine=when)
        trainer.train()
        runs.append(trainer)
    plain, watched = runs
    assert [bool(log) for log in logged(plain, "engine/")] == [False] * 3
    assert [bool(log) for log in logged(watched, "engine/")] == [True] * 3
    assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, runs), strict=True))
    for one, two in zip(plain.state.log_history[:-1], watched.state.log_history[:-1], strict=True):
        kept = {k: v for k, v in two.items() if not k.startswith(("engine/", "time/", "step_time"))}
        assert {k: v for k, v in one.items() if not k.startswith(("time/", "step_time"))} == kept


def test_it_leaves_generators_settings_and_mode(make_trainer: MakeTrainer) -> None:
    trainer = trainer_with(make_trainer, "generate")
    check = checked(trainer)
    trainer.model.train()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    settings = trainer.generation_config, trainer.generation_kwargs, trainer.num_generations_eval
    first = check.check(0)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == _draws()
    assert settings == (trainer.generation_config, trainer.generation_kwargs, trainer.num_generations_eval)
    assert "generate" not in vars(trainer.model)
    assert trainer.model.training
    assert not trainer._metrics["eval"]
    assert check.check(0) == first
    assert check.check(1) != first


def _draws() -> tuple[float, float, float]:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    return random.random(), np.random.random(), torch.rand(1).item()


def test_it_runs_before_each_generation_phase_once(make_trainer: MakeTrainer) -> None:
    sizes = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 5}
    trainer, engine = with_separate_engine(make_trainer(dataset=letter_dataset(64), **sizes))
    check, seeds = checked(trainer, check_engine="every_sync"), []
    assert check.host is not None
    lent = check.host.probe
    check.host = replace(check.host, probe=lambda prompts, seed: seeds.append(seed) or lent(prompts, seed))
    trainer.train()
    assert [bool(log) for log in logged(trainer, "engine/")] == [True, False, True, False, True]
    assert len(seeds) == len(set(seeds)) == 3
    assert engine.num_syncs == 3  # the probe brings the weights that the rollouts then use


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_perturbed_weights_are_found_at_the_start(make_trainer: MakeTrainer) -> None:
    trainer, engine = with_separate_engine(make_trainer(model=sharp(tiny_model())))
    sync = engine.sync_weights

    def noisy_sync() -> None:
        sync()
        with torch.no_grad():
            engine.model.model.layers[1].mlp.down_proj.weight.mul_(1.01)

    engine.sync_weights = noisy_sync  # type: ignore[method-assign]
    check = checked(trainer, engine_tolerance=1e-3)
    with pytest.raises(RunAborted) as caught:
        trainer.train()
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert len(message.splitlines()) == 1
    assert "more than the bound of 0.001 (rollout.engine_tolerance)" in message
    assert "weights that did not reach the engine" in message
    assert trainer.state.global_step == 0
    assert check.host is not None


def test_weights_that_grow_stale_are_found_at_the_next_sync(make_trainer: MakeTrainer) -> None:
    runs = {}
    for when in ("start", "every_sync"):
        trainer, engine = with_separate_engine(make_trainer(model=sharp(tiny_model()), max_steps=3))
        engine.sync_weights()
        engine.sync_weights = lambda: None  # type: ignore[method-assign]
        checked(trainer, check_engine=when, engine_tolerance=1e-3)
        runs[when] = trainer
    runs["start"].train()
    with pytest.raises(RunAborted, match="does not sample from the policy in training"):
        runs["every_sync"].train()
    assert runs["every_sync"].state.global_step == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("setting", [{"temperature": 0.9}, {"top_k": 4}], ids=["temperature", "top_k"])
def test_settings_behind_the_back_of_the_loss_are_found(
    make_trainer: MakeTrainer, engine: str, setting: dict[str, Any]
) -> None:
    trainer = trainer_with(make_trainer, engine, generation_kwargs=setting)
    if engine == "separate":
        trainer.vllm_generation.generation_kwargs = setting
    checked(trainer, engine_tolerance=1e-3)
    with pytest.raises(RunAborted, match="a temperature, top_p or penalty that it applies by itself"):
        trainer.train()


def test_an_engine_without_logprobs_is_refused(make_trainer: MakeTrainer) -> None:
    trainer, engine = with_separate_engine(make_trainer())
    engine.reports_logprobs = False
    checked(trainer)
    with pytest.raises(RunAborted, match=r"reported no log-probabilities .* rollout\.check_engine to 'off'"):
        trainer.train()


@pytest.mark.parametrize(
    ("engine", "changes", "expected"),
    [("generate", {}, 1e-3), ("generate", {"bf16": True}, 0.05), ("separate", {}, 0.05)],
)
def test_default_bound_is_that_of_the_precision(
    make_trainer: MakeTrainer, engine: str, changes: dict[str, Any], expected: float
) -> None:
    trainer = trainer_with(make_trainer, engine, **changes)
    assert checked(trainer)._tolerance() == expected
    assert checked(trainer, engine_tolerance=0.2)._tolerance() == 0.2


def test_bfloat16_weights_have_the_wider_bound(make_trainer: MakeTrainer) -> None:
    assert checked(make_trainer(model=tiny_model().to(torch.bfloat16)))._tolerance() == 0.05


def test_off_probes_nothing(make_trainer: MakeTrainer) -> None:
    trainer, engine = with_separate_engine(make_trainer(max_steps=1))
    engine.sync_weights = lambda: None  # type: ignore[method-assign]
    checked(trainer, check_engine="off")
    trainer.train()
    assert trainer.state.global_step == 1
