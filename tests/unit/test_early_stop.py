"""A run ends once its validation scores stand still, and not before."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from datasets import Dataset
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from rlvr.checkpointing import folders
from rlvr.config.schema import EarlyStopConfig, EvaluationConfig, RewardsConfig
from rlvr.evaluation.callback import EvaluationCallback
from rlvr.evaluation.plateau import EarlyStop, Standing, standing
from rlvr.evaluation.sets import EvaluationSets
from rlvr.reporting.recorder import read_metrics
from rlvr.reporting.report.reading import read_runs
from rlvr.reporting.report.verdict import status_of
from rlvr.verification import RewardFunction
from tests.unit.test_cli import recipe, train  # noqa: F401 - a fixture
from tests.unit.test_evaluate import ScriptedSampler, scripted_reward

STILL = [
    "trainer.learning_rate=0",
    "trainer.max_steps=20",
    "evaluation.validation.dev={dataset: rows.jsonl, limit: 4}",
    "evaluation.num_samples=2",
    "evaluation.k=[1,2]",
    "evaluation.every=2",
    "evaluation.early_stop={patience: 3}",
]


@pytest.mark.parametrize(
    ("scores", "min_gain", "expected"),
    [
        ([0.5], 0.0, Standing(0.5, 0, 0)),
        ([0.5, 0.5, 0.5], 0.0, Standing(0.5, 0, 2)),
        ([0.5, 0.4, 0.6, 0.55], 0.0, Standing(0.6, 20, 1)),
        ([0.5, 0.52, 0.54], 0.03, Standing(0.54, 20, 0)),  # small gains that add up are a gain
        ([0.5, 0.52, 0.53], 0.03, Standing(0.5, 0, 2)),
        ([0.5, 0.3, 0.4, 0.45], 0.0, Standing(0.5, 0, 3)),
    ],
)
def test_standing_by_hand(scores: list[float], min_gain: float, expected: Standing) -> None:
    by_step = {10 * place: score for place, score in enumerate(scores)}
    assert standing(dict(reversed(by_step.items())), min_gain) == expected


def write(folder: Path, moment: str, *scores: float, role: str = "validation") -> None:
    folder.mkdir(exist_ok=True)
    results = [{"role": role, "estimates": {"pass@1": {"value": each}}} for each in scores]
    results.append({"role": "test", "estimates": {"pass@1": {"value": len(list(folder.iterdir()))}}})  # ever better
    (folder / f"{moment}.json").write_text(json.dumps(results))


def test_looks_at_validation_sets_up_to_the_step_and_from_before_training_on(tmp_path: Path) -> None:
    stop = EarlyStop(EarlyStopConfig(patience=2), tmp_path, Console(quiet=True))
    assert not stop.look(0)
    write(tmp_path, "before", 0.6, 0.4)
    write(tmp_path, "step-000005", 0.7, 0.3)
    write(tmp_path, "step-000010", 0.4, 0.5)
    write(tmp_path, "step-000015", 0.9, 0.9)  # of an attempt that was interrupted later
    assert not stop.look(5)
    assert stop.look(10)
    assert not stop.look(15)


def test_stands_still_by_the_metric_that_is_asked_for(tmp_path: Path) -> None:
    for moment, first, second in (("before", 0.5, 0.8), ("step-000005", 0.9, 0.7)):
        estimates = {"pass@1": {"value": first}, "pass@2": {"value": second}}
        (tmp_path / f"{moment}.json").write_text(json.dumps([{"role": "validation", "estimates": estimates}]))
    for by, has_come in (("pass@1", False), ("pass@2", True)):
        assert EarlyStop(EarlyStopConfig(patience=1, by=by), tmp_path, Console(quiet=True)).look(5) is has_come


# ---- evaluations of a run -------------------------------------------------------------------------------------------


def callback_of(folder: Path, **sets: Mapping[str, Dataset]) -> EvaluationCallback:
    rewards = RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]})
    config = EvaluationConfig(num_samples=2, k=[1])
    functions = [RewardFunction("reward", 1.0, scripted_reward)]
    callback = EvaluationCallback(EvaluationSets(**sets), config, functions, rewards, folder, Console(quiet=True))
    callback.sample = ScriptedSampler()
    return callback


def test_a_run_that_has_not_come_to_its_end_is_not_evaluated_as_if_it_had(tmp_path: Path) -> None:
    callback, control = callback_of(tmp_path), TrainerControl()
    for step in (1, 2):
        state = TrainerState(global_step=step, max_steps=2)
        callback.on_train_end(TrainingArguments(str(tmp_path), report_to=[]), state, control)
        assert (tmp_path / "after.json").exists() == (step == 2)


def test_what_a_run_does_is_judged_by_validation_sets_alone(tmp_path: Path) -> None:
    tested, chosen = (Dataset.from_list([{"prompt": "a", "prompt_id": 0, "right": each}]) for each in ("01", "0"))
    callback = callback_of(tmp_path, test={"test": tested}, validation={"dev": chosen})
    assert callback.validate("now", Console(quiet=True)) == 0.5
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_scores_stand_still_ends_as_one_that_is_finished(recipe: Path) -> None:  # noqa: F811
    result = train(recipe, *STILL)
    assert result.exit_code == 0, result.output + repr(result.exception)
    run = recipe.parent / "run"
    words = " ".join(result.output.split())
    assert "Stopping after step 6: pass@1 on the validation sets has not risen in 3 evaluations; its best was" in words
    assert "at step 0." in words
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert (run / "policy" / "config.json").exists()
    before, after = (json.loads((run / "evaluations" / f"{each}.json").read_text()) for each in ("before", "after"))
    assert before == after
    assert folders.steps_of(run) == [6]
    assert status_of(read_runs([run])[0]) == "stopped after 6 of 20 steps, as validation stood still"

    kept = (run / "evaluations" / "before.json").stat().st_mtime_ns
    again = train(recipe, *STILL, "--resume")
    assert again.exit_code == 0, again.output + repr(again.exception)
    assert "Stopping after step 6" in " ".join(again.output.split())
    assert (run / "evaluations" / "before.json").stat().st_mtime_ns == kept
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert folders.steps_of(run) == [6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.early_stop={patience: 2}"], "evaluation.early_stop: needs held-out prompts"),
        ([*STILL[2:-2], "evaluation.early_stop={patience: 2}"], "and evaluation.every the steps between comparisons"),
        ([*STILL, "evaluation.early_stop.by=pass@3"], "evaluation.early_stop.by: 'pass@3' is not measured"),
        ([*STILL, "evaluation.early_stop.patience=0"], "evaluation.early_stop.patience"),
        ([*STILL, "evaluation.early_stop.min_gain=-0.1"], "evaluation.early_stop.min_gain"),
    ],
)
def test_refusals(recipe: Path, overrides: list[str], message: str) -> None:  # noqa: F811
    result = train(recipe, *overrides)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (recipe.parent / "run").exists()
