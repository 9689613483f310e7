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
ENGINES = [
    pytest.param(CONFIG, id="ddp"),
    pytest.param(CONFIGS / "fsdp2.yaml", id="fsdp2"),
    pytest.param(CONFIGS / "zero2.yaml", id="zero2", marks=needs_deepspeed),
    pytest.param(CONFIGS / "zero3.yaml", id="zero3", marks=needs_deepspeed),
]


@pytest.mark.parametrize("config", ENGINES)
def test_a_fault_on_one_rank_is_one_of_both(tmp_path: Path, config: Path) -> None:
    launch([WORKER, str(tmp_path), *CASES], 2, ROOT, config, (), {"DS_ACCELERATOR": "cpu"})
    expected = load_file(tmp_path / "plain/after/model.safetensors")
    start = dict(model_of("untied").named_parameters())
    for fault in FAULTS:
        check_skipped(tmp_path / f"skip_{fault}", expected, start)
        check_stopped(tmp_path / f"stop_{fault}", fault)


def check_skipped(folder: Path, expected: dict[str, torch.Tensor], start: dict[str, torch.nn.Parameter]) -> None:
    """Three steps of which one was skipped are two, on rollouts that are always the same."""
    found = load_file(folder / "after/model.safetensors")
    for name, value in expected.items():
        moved = (value - start[name].detach()).abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * moved, msg=lambda m, n=name: f"{n}: {m}")
    assert max((value - start[name].detach()).abs().max().item() for name, value in expected.items()) > 1e-3
    assert [(folder / f"ended-{rank}.txt").read_text() for rank in range(2)] == ["finished"] * 2
    steps = torch.load(folder / "metrics.pt", weights_only=True)
    assert [step["watch/skipped_steps"] for step in steps[:3]] == [0.0, 1.0, 1.0]
    assert sorted(path.name for path in (folder / "nonfinite").iterdir()) == ["step-2-rank-0", "step-2-rank-1"]


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
