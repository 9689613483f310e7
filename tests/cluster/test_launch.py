"""scripts/launch.py: resume or start, SIGTERM for the training processes, their exit status."""

import signal
from pathlib import Path

import pytest

from scripts.launch import accelerate_arguments, exit_status, parser, training_arguments
from tests.conftest import ROOT
from tests.distributed.forking import run_forked

CONFIG = ROOT / "recipes" / "accelerate" / "cpu2.yaml"
WORKER = ROOT / "tests" / "cluster" / "launch_worker.py"


def test_a_run_is_started_or_resumed(tmp_path: Path) -> None:
    options = parser().parse_args(
        ["--config", "c.yaml", "--processes", "8", "recipe.yaml", str(tmp_path / "run"), "trainer.seed=1"]
    )
    start = ["recipe.yaml", f"trainer.output_dir={tmp_path / 'run'}", "trainer.seed=1"]
    assert training_arguments(options) == start
    (tmp_path / "run").mkdir()
    assert training_arguments(options) == start  # a folder that holds no run
    (tmp_path / "run" / "recipe.yaml").touch()
    assert training_arguments(options) == [*start, "--resume"]


def test_processes_are_those_of_all_machines() -> None:
    words = ["--config", "c.yaml", "--processes", "8", "--machines", "3", "--rank", "2", "--main-address", "host"]
    arguments = accelerate_arguments(parser().parse_args([*words, "--port", "20001", "recipe.yaml", "run"]))
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given == {
        "--config_file": "c.yaml",
        "--num_machines": "3",
        "--machine_rank": "2",
        "--num_processes": "24",
        "--main_process_ip": "host",
        "--main_process_port": "20001",
        "--deepspeed_multinode_launcher": "standard",
    }


@pytest.mark.parametrize(
    ("statuses", "terminated", "expected"),
    [
        ([75, 75], True, 75),
        ([75, -signal.SIGTERM], True, 75),  # the launcher of torch ends the others when the first is done
        ([-signal.SIGTERM, -signal.SIGTERM], True, 75),  # before they could listen
        ([-signal.SIGTERM, -signal.SIGTERM], False, 143),  # it was somebody else
        ([1, -signal.SIGTERM], False, 1),
        ([2, 2], False, 2),
        ([1], True, 1),
        ([-signal.SIGKILL], False, 137),  # out of memory
        ([-signal.SIGKILL], True, 137),
        ([-signal.SIGABRT, -signal.SIGTERM], False, 143),
    ],
)
def test_one_status_for_all_processes(statuses: list[int], terminated: bool, expected: int) -> None:
    assert exit_status(statuses, terminated) == expected


@pytest.mark.distributed
@pytest.mark.parametrize("processes", ["1", "2"])
def test_sigterm_is_passed_on_and_the_status_comes_back(tmp_path: Path, processes: str) -> None:
    """By the real launcher. The training processes stand in for ours: they note the signal, take a moment, save."""
    status, output = run_forked([str(WORKER), processes, "save"], 1, tmp_path, CONFIG, [], {"FOLDER": str(tmp_path)})
    assert status == 75, output
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == [f"saved-{n}" for n in range(int(processes))]


@pytest.mark.distributed
def test_a_failure_keeps_its_status(tmp_path: Path) -> None:
    status, output = run_forked([str(WORKER), "2", "fail"], 1, tmp_path, CONFIG, [], {"FOLDER": str(tmp_path)})
    assert status == 2, output
