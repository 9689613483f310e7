"""`rlvr eval` on two CPU processes (gloo): the samples and the results are those of one."""

import json
from pathlib import Path
from typing import Any

import pytest

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
