"""Jumps that a recipe has judged on its validation sets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.errors import RewardError
from rlvr.evaluation.evaluate import mean_pass_rate
from rlvr.evaluation.records import PromptRecord

SUMS = "reasoning_gym://chain_sum?min_terms=3&max_terms=3&max_digits=1"


def record(*outcomes: float | None) -> PromptRecord:
    return PromptRecord(0, outcomes, None, (0.0,) * len(outcomes), (1,) * len(outcomes), 0)


def test_mean_pass_rate_is_a_mean_over_sets_of_means_over_prompts() -> None:
    first = [record(1.0, 0.0, 0.0, 0.0), record(1.0, 1.0, 1.0, 0.0), record(1.0, None, 1.0, 1.0)]
    second = [record(0.0, 0.0)]
    assert mean_pass_rate({"first": first}) == pytest.approx((0.25 + 0.75) / 2)
    assert mean_pass_rate({"first": first, "second": second}) == pytest.approx(0.25)
    with pytest.raises(RewardError, match="'second'"):
        mean_pass_rate({"first": first, "second": [record(None, 1.0)]})


def run_of(folder: Path, name: str, **sections: Any) -> Path:
    content: dict[str, Any] = {
        "model": "builtin://starter",
        "data": {"train": {"dataset": f"{SUMS}&seed=1&size=64"}, "template": "solve {metadata[expression]} ="},
        "rewards": {"functions": ["reasoning_gym"], "workers": 0},
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 16,
            "max_completion_length": 32,
            "learning_rate": 1e-4,
            "max_steps": 4,
            "output_dir": str(folder / name),
            "use_cpu": True,
        },
        "evaluation": {
            "validation": {"dev": {"dataset": f"{SUMS}&seed=2&size=8"}},
            "num_samples": 4,
            "k": [4],
            "greedy": False,
        },
        "report": {"to": ["none"]},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | sections))
    result = CliRunner().invoke(app, ["train", str(path)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return folder / name


def jumps_of(run: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        each["step"]: {k.removeprefix("extrapolation/"): v for k, v in each.items() if k.startswith("extrapolation/")}
        for each in records
        if "extrapolation/jump" in each
    }


def test_jumps_that_ruin_the_policy_are_undone_and_training_is_what_it_was(tmp_path: Path) -> None:
    """The evaluation at each jump draws random numbers too, so this also says that they are its own."""
    plain = run_of(tmp_path, "plain")
    section = {"train_steps": 2, "skip_steps": 10**6}
    judged = run_of(tmp_path, "judged", extrapolation=section)
    found = jumps_of(judged)
    assert list(found) == [2, 4]
    for each in found.values():
        assert each["validation_after"] < each["validation_before"]
        assert (each["jump"], each["beta"], each["undone"]) == (1.0, 500001.0, 1.0)
    assert found[4]["validation_before"] == pytest.approx(pass_rate_after(judged))
    weights = [load_file(run / "policy" / "model.safetensors") for run in (plain, judged)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    blind = run_of(tmp_path, "blind", extrapolation={**section, "validate": False})
    assert jumps_of(blind)[4] == {"jump": 1.0, "beta": 500001.0, "undone": 0.0}
    ruined = load_file(blind / "policy" / "model.safetensors")
    assert any(not weights[0][name].equal(ruined[name]) for name in ruined)


def pass_rate_after(run: Path) -> float:
    """pass@1 from the evaluation after the run, whose draws are those of the one before the last jump."""
    (result,) = json.loads((run / "evaluations" / "after.json").read_text())
    rate: float = result["mean_reward"]
    return rate
