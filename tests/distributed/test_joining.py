"""Processes that cannot come together end with one sentence: a rank that is missing, a port that is taken."""

import json
import socket
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.distributed.forking import run_forked
from tests.distributed.test_two_processes import CONFIG

SCRIPT, RECIPE = str(ROOT / "scripts" / "train.py"), str(ROOT / "recipes" / "quickstart.yaml")
pytestmark = pytest.mark.distributed


def error_of(folder: Path, rank: int, port: int) -> str:
    """What one rank of two says when the other does not come within 2 seconds."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    place |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    arguments = [SCRIPT, RECIPE, f"trainer.output_dir={folder / 'run'}", "trainer.ddp_timeout=2"]
    status, output = run_forked(arguments, 1, folder, CONFIG, (), place)
    assert status == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in output
    assert not (folder / "run").exists()
    return line


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_rank(tmp_path: Path, rank: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert error_of(tmp_path, rank, port) == (
        f"error: Process {rank} of 2 waited 2 s (trainer.ddp_timeout) at 127.0.0.1:{port}, and not all of the others"
        " came; start all of them, with the same address, port and --num_processes on every machine."
    )


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert error_of(tmp_path, 0, port) == (
            f"error: Port {port} of 127.0.0.1 is in use, so the processes cannot meet there; choose another by"
            " `accelerate launch --main_process_port PORT`, or end what uses it."
        )


def test_world_size_that_does_not_divide_the_batch(tmp_path: Path) -> None:
    """Every rank says so, once, before anything is loaded."""
    content = {
        "model": "builtin://starter",
        "data": {"train": {"dataset": "rows.jsonl"}},
        "rewards": {"functions": ["exact"]},
        "trainer": {"num_generations": 8, "per_device_train_batch_size": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    status, output = run_forked([SCRIPT, str(tmp_path / "recipe.yaml")], 2, tmp_path, CONFIG, (), {})
    assert status == 2
    lines = set(output.splitlines())
    assert lines == {
        f"error: {tmp_path / 'recipe.yaml'}: trainer.num_generations: per_device_train_batch_size=2 x"
        " gradient_accumulation_steps=1 x 2 processes = 4 is not a multiple of num_generations=8; make it one (with N"
        " processes the product counts N times)"
    }
