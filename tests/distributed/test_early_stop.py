"""A run on two CPU processes (gloo) ends on a plateau at the same step in both."""

import json
from pathlib import Path

import pytest

from rlvr.checkpointing import folders
from rlvr.reporting.recorder import read_metrics
from tests.conftest import ROOT
from tests.distributed.test_two_processes import launch
from tests.unit.test_cli import recipe  # noqa: F401 - a fixture
from tests.unit.test_early_stop import STILL

pytestmark = pytest.mark.distributed


def test_two_processes_stop_together(recipe: Path) -> None:  # noqa: F811
    launch([str(ROOT / "rlvr/__main__.py"), "train", str(recipe), *STILL], 2, recipe.parent)
    run = recipe.parent / "run"
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    assert folders.steps_of(run) == [6]
    before, after = (json.loads((run / "evaluations" / f"{each}.json").read_text()) for each in ("before", "after"))
    assert before == after
