"""Two processes agree on a step that is not finite on one of them, and a stall of one brings the stacks of both."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.distributed.forking import run_forked
from tests.distributed.sharded_worker import model_of
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed
from tests.distributed.test_two_processes import CONFIG, launch
from tests.distributed.watching_worker import CASES
from tests.unit.nonfinite_cases import FAULTS

WORKER = str(ROOT / "tests/distributed/watching_worker.py")
pytestmark = pytest.mark.distributed
SHARDED = [
    pytest.param("fsdp2.yaml", id="fsdp2"),
    pytest.param("zero2.yaml", id="zero2", marks=needs_deepspeed),
    pytest.param("zero3.yaml", id="zero3", marks=needs_deepspeed),
]


def run(folder: Path, config: Path, *cases: str) -> Path:
    launch([WORKER, str(folder), *cases], 2, ROOT, config, (), {"DS_ACCELERATOR": "cpu"})
    return folder


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("ddp"), CONFIG, *CASES)


def check_skipped(folder: Path, ddp: Path) -> None:
    """Four steps of which two were skipped are two, on rollouts that are always the same."""
    expected = load_file(ddp / "plain/after/model.safetensors")
    found = load_file(folder / "skip/after/model.safetensors")
    start = {name: each.detach() for name, each in model_of("untied").named_parameters()}
    for name, value in expected.items():
        moved = (value - start[name]).abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4 * moved, msg=lambda m, n=name: f"{n}: {m}")
    assert max((value - start[name]).abs().max().item() for name, value in expected.items()) > 1e-3
    assert [(folder / f"skip/ended-{rank}.txt").read_text() for rank in range(2)] == ["finished"] * 2
    steps = torch.load(folder / "skip/metrics.pt", weights_only=True)
    assert [step["watch/skipped_steps"] for step in steps[:4]] == [0.0, 1.0, 2.0, 2.0]
    assert sorted(path.name for path in (folder / "skip/nonfinite").iterdir()) == ["step-2-rank-0", "step-2-rank-1"]


@pytest.mark.parametrize("config", SHARDED)
def test_a_step_that_fails_on_one_rank_is_skipped_by_both(tmp_path: Path, ddp: Path, config: str) -> None:
    check_skipped(run(tmp_path, CONFIGS / config, "skip"), ddp)


def test_a_step_that_fails_on_one_rank_is_skipped_by_both_under_ddp(ddp: Path) -> None:
    check_skipped(ddp, ddp)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_fails_on_one_rank_stops_both(ddp: Path, fault: str) -> None:
    check_stopped(ddp / f"stop_{fault}", fault)


def check_stopped(folder: Path, fault: str) -> None:
    what = {"loss": "the loss (loss/policy)", "gradient": "the gradient"}[fault]
    for rank in range(2):
        assert (folder / f"ended-{rank}.txt").read_text().startswith(f"Step 2: {what} is not finite")
        report = json.loads((folder / f"nonfinite/step-2-rank-{rank}/report.json").read_text())
        rows = sum(len(each["rows"]) for each in report["microbatches"])
        assert bool(rows) == (fault == "loss" and rank == 1)
        assert len((folder / f"nonfinite/step-2-rank-{rank}/rows.jsonl").read_text().splitlines()) == 8


def test_a_stall_of_one_rank_brings_the_stacks_of_both_and_the_end(tmp_path: Path) -> None:
    status, output = run_forked([WORKER, str(tmp_path), "stall"], 2, ROOT, CONFIG, (), {})
    assert status == 1, output
    ranks = tmp_path / "stall/ranks"
    for rank, function in ((0, "gather"), (1, "stuck_reward")):
        text = "".join(path.read_text() for path in (ranks / f"rank-{rank}").glob("stacks-*.txt"))
        assert f"in {function}\n" in text
        assert f"rank {rank} " in text.splitlines()[0]
        assert "'verify' after step 1 for" in text
        found = json.loads((ranks / f"rank-{rank}/heartbeat.json").read_text())
        assert (found["rank"], found["num_processes"], found["step"], found["stage"]) == (rank, 2, 1, "verify")
        assert f"process {rank} of 2, pid " in (ranks / f"rank-{rank}/log.txt").read_text()
    assert "has made no progress in 'verify' after step 1" in output
    assert "ends, as watch.on_stall is 'abort'" in output
