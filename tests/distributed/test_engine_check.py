"""The engine check on two CPU processes (gloo): all ranks probe in step, see the same, and train as if it were off."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed
from tests.distributed.test_two_processes import launch

WORKER = str(ROOT / "tests/distributed/engine_worker.py")
pytestmark = pytest.mark.distributed


def run(folder: Path, config: Path, *engines: str) -> dict[str, list[dict[str, Any]]]:
    """What each rank found, by engine."""
    launch([WORKER, str(folder), *engines], 2, ROOT, config, (), {"DS_ACCELERATOR": "cpu"})
    return {each: [json.loads((folder / f"{each}-{rank}.json").read_text()) for rank in range(2)] for each in engines}


def check_ranks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        steps = found["every_sync"][:-1]
        assert len(steps) == 2
        for plain, watched in zip(found.get("off", []), steps, strict=False):
            assert {k: v for k, v in watched.items() if not k.startswith("engine/")} == plain
        for watched in steps:
            assert watched["engine/ratio_dev_max"] < 1e-4
            assert watched["engine/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    figures = [[{k: v for k, v in s.items() if k.startswith("engine/")} for s in r["every_sync"]] for r in ranks]
    assert figures[0] == figures[1]


def check_fault(ranks: list[dict[str, Any]]) -> None:
    messages = [found["wrong"] for found in ranks]
    assert messages[0] == messages[1]
    assert "does not sample from the policy in training" in messages[0][0]


@needs_deepspeed
def test_zero3(tmp_path: Path) -> None:
    found = run(tmp_path, CONFIGS / "zero3.yaml", "generate", "continuous")
    for ranks in found.values():
        check_ranks(ranks)
    assert len(found["generate"][0]["off"]) == 3
    check_fault(found["generate"])


def test_fsdp2(tmp_path: Path) -> None:
    found = run(tmp_path, CONFIGS / "fsdp2.yaml", "generate", "continuous")
    check_ranks(found["generate"])
    check_fault(found["generate"])
    for rank in found["continuous"]:
        assert "cannot sample from weights that are sharded by FSDP" in rank["every_sync"][0]
