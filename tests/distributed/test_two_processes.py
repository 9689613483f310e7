"""Two CPU processes (gloo) are one process with the whole batch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import ROOT
from tests.distributed.forking import run_forked
from tests.distributed.worker import RUNS

CONFIG = ROOT / "recipes" / "accelerate" / "cpu2.yaml"
pytestmark = pytest.mark.distributed


def launch(
    arguments: list[str],
    processes: int,
    cwd: Path,
    config: Path = CONFIG,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> None:
    """Runs a script in one process, or in two as the accelerate launcher starts them, on a port of its own."""
    status, output = run_forked(arguments, processes, cwd, config, options, variables or {})
    assert status == 0, output


def launch_for_real(arguments: list[str], cwd: Path, config: Path = CONFIG) -> None:
    """In two processes, by the accelerate launcher itself."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    port = str(20000 + os.getpid() % 20000)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launcher += ["--main_process_port", port, *arguments]
    result = subprocess.run(
        launcher, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of every preset, by one process and by two."""
    folder = tmp_path_factory.mktemp("steps")
    for processes in (1, 2):
        launch(
            [str(ROOT / "tests/distributed/worker.py"), str(folder / str(processes)), str(processes)], processes, folder
        )
    return folder


@pytest.mark.parametrize("preset", RUNS)
def test_first_step_gradient_equals_one_process(steps: Path, preset: str) -> None:
    one, two = (torch.load(steps / n / preset / "gradient.pt", weights_only=True) for n in ("1", "2"))
    assert set(one) == set(two)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    assert sum(g.norm() for g in one.values()) > 1e-3
    first, second = (torch.load(steps / n / preset / "metrics.pt", weights_only=True)[0] for n in ("1", "2"))
    for name in ("reward/mean", "entropy/mean_token", "loss/policy", "advantage/abs_mean", "groups/solved_frac"):
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-7), name
    chosen = RUNS[preset][1]
    own = [name for name in first if any(part in chosen for part in name.split("/"))]
    assert bool(own) == bool(chosen)
    for name in own:
        assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_launched_recipe_trains_and_evaluates(tmp_path: Path) -> None:
    script, recipe = str(ROOT / "scripts" / "train.py"), str(ROOT / "recipes" / "quickstart.yaml")
    sizes = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1"]
    data = "reasoning_gym://chain_sum?min_terms=3&max_terms=3&max_digits=1&seed=2&size=5"
    options = ["evaluation.num_samples=2", "evaluation.k=[1,2]", f"evaluation.sets.heldout.dataset={data}"]
    launch_for_real([script, recipe, f"trainer.output_dir={tmp_path / 'run'}", *sizes, *options], tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "reward/mean" in r] == [1, 2]
    for moment in ("before", "after"):
        (result,) = json.loads((tmp_path / "run" / "evaluations" / f"{moment}.json").read_text())
        assert result["num_prompts"] == 5  # an odd number: the ranks' shares overlap and are counted once
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


def test_processes_leave_out_the_rows_that_the_first_one_finds_bad(tmp_path: Path) -> None:
    """The verifier answers each rank differently; ranks that went by their own verdicts would differ or hang."""
    (tmp_path / "ranked.py").write_text(
        "import os\nfrom rewards._item import graded, item_reward\n"
        "@item_reward\ndef ranked(text, answer):\n"
        "    return graded(float(text == answer and answer != f\"bad on {os.environ['RANK']}\"))\n"
    )
    rows = [{"prompt": f"solve {n} =", "answer": f"bad on {n % 2}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "model": "builtin://starter",
        "data": {"train": {"dataset": "rows.jsonl"}, "self_check": "drop"},
        "rewards": {"functions": ["./ranked.py:ranked"], "workers": 1},
        "trainer": {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 4, "max_steps": 4},
        "report": {"to": ["none"]},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    script, run = str(ROOT / "scripts" / "train.py"), tmp_path / "run"
    launch([script, str(tmp_path / "recipe.yaml"), f"trainer.output_dir={run}"], 2, tmp_path)
    completions = pq.read_table(run / "completions").to_pylist()
    assert {row["prompt_id"] for row in completions} == {1, 3, 5, 7}
    (tmp_path / "unsound.py").write_text(
        "from rewards._item import item_reward\n@item_reward\ndef unsound(text, answer):\n    return 1.0\n"
    )
    options = ["rewards.functions.0=./unsound.py:unsound", f"trainer.output_dir={tmp_path / 'other'}"]
    with pytest.raises(AssertionError, match=r"reward 'unsound' returned 1\.0"):
        launch([script, str(tmp_path / "recipe.yaml"), *options], 2, tmp_path)


def test_interrupted_processes_agree_on_a_checkpoint_and_go_on(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the launcher and both ranks, and the launcher then terminates the ranks."""
    run = tmp_path / "run"
    sizes = ["trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1", "trainer.max_steps=60"]
    arguments = [str(ROOT / "scripts" / "train.py"), str(ROOT / "recipes" / "quickstart.yaml")]
    arguments += [f"trainer.output_dir={run}", "evaluation.sets={}", *sizes]
    port = str(20000 + os.getpid() % 20000)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    process = subprocess.Popen(
        [*command, "--main_process_port", port, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert step < 60, output
    launch([*arguments, "--resume"], 2, tmp_path)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 60
    assert step + 1 in steps
