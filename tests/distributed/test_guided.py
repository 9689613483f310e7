"""With guidance, two CPU processes (gloo) are one process with the whole batch."""

import math
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.distributed.guided_worker import CASES, RATIO, SAMPLED
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed
from tests.distributed.test_two_processes import launch

WORKER = str(ROOT / "tests/distributed/guided_worker.py")
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step with each guidance, by one process and by two."""
    folder = tmp_path_factory.mktemp("guided")
    for processes in (1, 2):
        arguments = [str(folder / str(processes)), str(processes)]
        launch([WORKER, *arguments], processes, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_guided_step_equals_one_process(steps: Path, case: str) -> None:
    one, two = (torch.load(steps / n / case / "gradient.pt", weights_only=True) for n in ("1", "2"))
    assert set(one) == set(two)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(gradient.norm() for gradient in one.values()) > 1e-3
    first, second = (torch.load(steps / n / case / "metrics.pt", weights_only=True)[0] for n in ("1", "2"))
    assert set(first) == set(second)
    for name, expected in first.items():
        if not name.startswith(("time/", "step_time", "train_")):
            assert second[name] == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True), name
    assert 0 < first["guidance/helped_frac"] <= 0.5
    settings, _ = CASES[case]
    assert ("guidance/gamma" in first) == (settings.get("hint_conditioning") == RATIO)
    rows = [torch.load(steps / n / case / "rows.pt", weights_only=True) for n in ("1", "2")]
    assert rows[0] == rows[1]
    assert any(rows[0]["hints"]) == (settings["rule"] != "teacher")


def test_some_groups_are_mended_and_some_are_not(steps: Path) -> None:
    """Or the comparison above would be one of steps without help, or without a signal in what was helped."""
    shares = {
        case: torch.load(steps / "1" / case / "metrics.pt", weights_only=True)[0]["guidance/signal_frac"]
        for case in CASES
    }
    assert min(shares.values()) > 0.5


def check_sampled(folder: Path) -> None:
    *logs, _ = torch.load(folder / SAMPLED / "metrics.pt", weights_only=True)
    assert len(logs) == 3
    assert all(math.isfinite(log["loss"]) for log in logs)
    assert any(log["guidance/helped_frac"] > 0 for log in logs)


def test_sampling_with_hints_ends_well_in_two_processes(steps: Path) -> None:
    check_sampled(steps / "1")
    check_sampled(steps / "2")


@pytest.mark.parametrize("config", [pytest.param("zero3.yaml", marks=needs_deepspeed), "fsdp2.yaml"])
def test_sharded_weights_are_gathered_by_ranks_with_and_without_groups_in_need(
    steps: Path, tmp_path: Path, config: str
) -> None:
    """Only the first rank has groups to help; then three steps with real sampling from sharded weights."""
    case, variables = "one_rank", {"DS_ACCELERATOR": "cpu"}
    launch([WORKER, str(tmp_path), "2", case, SAMPLED], 2, ROOT, CONFIGS / config, (), variables)
    one, two = (torch.load(folder / case / "metrics.pt", weights_only=True)[0] for folder in (steps / "1", tmp_path))
    assert one["guidance/helped_frac"] == 0.5
    for name in ("loss", "grad_norm", "ratio/mean", *(each for each in one if each.startswith("guidance/"))):
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    check_sampled(tmp_path)
