"""A run ends once its validation scores stand still, and not before."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rlvr.checkpointing import folders
from rlvr.config.schema import EarlyStopConfig
from rlvr.evaluation.plateau import EarlyStop, Standing, standing
from rlvr.reporting.recorder import read_metrics
from rlvr.reporting.report.reading import read_runs
from rlvr.reporting.report.verdict import status_of
from tests.unit.test_cli import recipe, train  # noqa: F401 - a fixture

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

    again = train(recipe, *STILL, "--resume")
    assert again.exit_code == 0, again.output + repr(again.exception)
    assert "Stopping after step 6" in " ".join(again.output.split())
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
