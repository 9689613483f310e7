"""The Slurm script with commands that stand in for Slurm's: what it starts, and what it does when it is preempted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.launch import parser
from tests.cluster.manifests import CLUSTER
from tests.cluster.shells import SCANCEL, SCONTROL, SQUEUE, SRUN, found_command, write_commands
from tests.conftest import ROOT

SCRIPT = CLUSTER / "train.sbatch"
JOB_ID = str(40000 + os.getpid() % 10000)
Start = Callable[..., "subprocess.Popen[str]"]

# In place of Python: notes its arguments, then does as $STUB says.
STUB = r"""#!/bin/bash
printf '%s\n' "$@" > "$FAKE/arguments.$SLURM_PROCID"
case $STUB in
  save)
    trap 'touch "$FAKE/saved.$SLURM_PROCID"; exit 75' TERM
    touch "$FAKE/ready.$SLURM_PROCID"
    while :; do sleep 0.02; done ;;
  *) exit "$STUB" ;;
esac
"""
SERVER = r"""#!/bin/bash
printf '%s\n' "$@" > "$FAKE/server"
exec sleep 60
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the script as Slurm would on two nodes, with Slurm's commands and a Python of our own."""
    write_commands(tmp_path / "bin", srun=SRUN, squeue=SQUEUE, scancel=SCANCEL, scontrol=SCONTROL)
    write_commands(tmp_path / "venv", python=STUB, trl=SERVER)

    def started(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(tmp_path),
            "PYTHON": str(tmp_path / "venv" / "python"),
            "SLURM_JOB_ID": JOB_ID,
            "SLURM_JOB_NODELIST": "localhost,127.0.0.1",
            "SLURM_GPUS_ON_NODE": "8",
        }
        command = ["bash", str(SCRIPT), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=environment | variables, stdout=pipe, stderr=pipe, text=True)

    return started


def test_script_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    subprocess.run([found_command("shellcheck"), str(SCRIPT)], check=True)
    directives = [line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if "#SBATCH" in line]
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(directives)
    assert any(line.startswith("--signal=B:TERM@") for line in directives)  # B: only the script is warned


@pytest.mark.parametrize(("status", "requeued"), [("0", False), ("1", False), ("2", False), ("75", True)])
def test_only_a_saved_run_is_queued_again(start: Start, tmp_path: Path, status: str, requeued: bool) -> None:
    process = start("recipe.yaml", "runs/x", STUB=status)
    output = process.communicate(timeout=20)
    assert process.returncode == int(status), output
    assert (tmp_path / "requeued").exists() == requeued
    assert not requeued or (tmp_path / "requeued").read_text().split() == [JOB_ID]


def test_every_node_is_launched_with_its_number(start: Start, tmp_path: Path) -> None:
    overrides = ["trainer.max_steps=3", "model=a b"]
    process = start("recipe.yaml", "runs/x", *overrides, STUB="0", ACCELERATE_CONFIG="some.yaml")
    assert process.wait(timeout=20) == 0
    for node in (0, 1):
        entry, *words = (tmp_path / f"arguments.{node}").read_text().splitlines()
        assert entry == "scripts/launch.py"
        options = parser().parse_args(words)
        assert (options.machines, options.rank, options.processes) == (2, node, 8)
        assert (options.main_address, options.config) == ("localhost", "some.yaml")
        assert 1024 < options.port < 32768
        assert (options.recipe, options.run_dir) == ("recipe.yaml", Path("runs/x"))
        assert options.overrides == overrides
    slurm = (tmp_path / "train.options").read_text().split()
    assert {"--nodes=2", "--ntasks=2", "--nodelist=localhost,127.0.0.1", "--kill-on-bad-exit=0"} <= set(slurm)


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.02)


def test_a_warned_job_saves_on_every_node_and_is_queued_again(start: Start, tmp_path: Path) -> None:
    process = start("recipe.yaml", "runs/x", STUB="save", VLLM_MODEL="some/model", SLURM_JOB_NODELIST="a,b,c")
    wait_for(*(tmp_path / name for name in ("ready.0", "ready.1", "server", "train.pids", "vllm.pids")))
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=20)  # until nobody holds its output: the server has ended as well
    assert process.returncode == 75, output
    assert (tmp_path / "requeued").read_text().split() == [JOB_ID]
    assert (tmp_path / "saved.0").exists()
    assert (tmp_path / "saved.1").exists()
    options = parser().parse_args((tmp_path / "arguments.1").read_text().splitlines()[1:])
    assert options.machines == 2
    assert set(options.overrides) >= {"trainer.vllm_mode=server", "trainer.vllm_server_host=c", "trainer.use_vllm=true"}
    assert "--nodelist=c" in (tmp_path / "vllm.options").read_text().split()
    assert "--nodelist=a,b" in (tmp_path / "train.options").read_text().split()
    assert (tmp_path / "server").read_text().split()[:3] == ["vllm-serve", "--model", "some/model"]


@pytest.mark.distributed
@pytest.mark.slow
def test_two_nodes_train_the_quickstart(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1"]
    process = start(
        *("recipes/quickstart.yaml", str(run), *sizes, "evaluation.sets={}", "report.to=[none]"),
        PYTHON=sys.executable,
        PYTHONPATH=str(ROOT),
        OMP_NUM_THREADS="1",
        ACCELERATE_CONFIG="recipes/accelerate/cpu2.yaml",
        PROCESSES_PER_NODE="1",
    )
    output = process.communicate(timeout=200)
    assert process.returncode == 0, output
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "reward/mean" in record] == [1]
    assert json.loads((run / "run.json").read_text())["num_processes"] == 2
    assert (run / "policy" / "model.safetensors").exists()
