"""`rlvr eval` on two CPU processes (gloo): the samples and the results are those of one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr.evaluation.samples import Sample, read_samples
from tests.conftest import ROOT
from tests.distributed.test_two_processes import launch
from tests.unit.test_eval_command import parts, recipe  # noqa: F401 - a fixture

pytestmark = pytest.mark.distributed


def evaluate(recipe: Path, processes: int) -> tuple[list[Sample], dict[str, Any]]:  # noqa: F811
    """All samples of both models, and results.json."""
    folder = recipe.parent
    models = ["--model", str(folder / "tuned"), "--base", str(folder / "base")]
    launch(
        [str(ROOT / "rlvr/__main__.py"), "eval", str(recipe), *models, "--output", str(folder / "out")],
        processes,
        folder,
    )
    found = [each for part in sorted({path.parent for path in parts(recipe)}) for each in read_samples(part)]
    return sorted(found, key=str), json.loads((folder / "out" / "results.json").read_text())


def test_two_processes_draw_the_samples_of_one_and_go_on_to_them(recipe: Path) -> None:  # noqa: F811
    samples, results = evaluate(recipe, 2)
    assert len(samples) == 2 * 10 * 5
    written = parts(recipe)
    assert [path.stem[-3:] for path in written] == ["000", "001"] * 4  # four batches of each model, two by each process
    written[1].unlink()  # as if it had been interrupted
    assert evaluate(recipe, 2) == (samples, results)
    for path in parts(recipe):
        path.unlink()
    assert evaluate(recipe, 1) == (samples, results)


def test_processes_with_unlike_numbers_of_batches_ask_the_policy_that_is_evaluated(recipe: Path) -> None:  # noqa: F811
    """A reward takes the policy as its scorer; the first process has two batches to judge, the second one."""
    folder = recipe.parent
    with (folder / "my_reward.py").open("a") as file:
        file.write(
            "def asks(completions, scorer, **_):\n"
            "    values = scorer.score_tokens(['d'] * len(completions), ['e'] * len(completions))\n"
            "    return [each[0] for each in values]\n"
        )
    content = yaml.safe_load(recipe.read_text())
    content["rewards"]["functions"].append({"use": "./my_reward.py:asks", "weight": 0.1})
    content["evaluation"]["batch_size"] = 16  # three batches
    recipe.write_text(yaml.safe_dump(content))
    samples, results = evaluate(recipe, 2)
    assert [path.stem[-3:] for path in parts(recipe)] == ["000", "001", "000"] * 2
    for path in parts(recipe):
        path.unlink()
    assert evaluate(recipe, 1) == (samples, results)
