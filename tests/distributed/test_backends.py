"""Each launch configuration of recipes/accelerate runs a recipe on two CPU processes (gloo), as one process runs it.

With guidance and regularisers, all weights trained or an adapter, and the samples, saving and loading of a real run.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlvr.config import ModelConfig
from rlvr.model import load_policy
from tests.conftest import ROOT
from tests.distributed.backend_worker import RECIPE
from tests.distributed.forking import launched_environment, run_forked
from tests.distributed.test_sharded import needs_deepspeed
from tests.distributed.test_two_processes import launch
from tests.unit.test_quantization import needs_bitsandbytes

WORKER, CONFIGS = str(ROOT / "tests/distributed/backend_worker.py"), ROOT / "recipes" / "accelerate"
CPU = ("--mixed_precision", "no")  # in bfloat16 two ways to sum up differ by a hundredth
TWO = ("--num_processes", "2", *CPU)
CASES = ("full", "lora")
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process."""
    folder = tmp_path_factory.mktemp("alone")
    variables = launched_environment(CONFIGS / "single.yaml", CPU, ROOT)
    launch([WORKER, str(folder), "1", *CASES], 1, folder, variables=variables)
    assert facts_of(folder, "full")["processes"] == 1
    return folder


def facts_of(folder: Path, case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / case / "facts.json").read_text())
    return found


def gradient(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's one step, out of what Adam made of it: u = g / (|g| + 1)."""
    start = load_policy(ModelConfig(path="builtin://starter")).state_dict()
    after = load_file(folder / "full" / "run" / "policy" / "model.safetensors")
    after.pop("lm_head.weight", None)  # some engines save a tied head under both of its names
    moves = {name: start[name] - value for name, value in after.items()}
    return {name: move / (1 - move.abs()) for name, move in moves.items()}


def adapter_moves(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """(weights before - weights after) of what is trained beside or in place of the weights."""
    start = load_file(folder / case / "start.safetensors")
    after = load_file(folder / case / "run" / "policy" / "adapter_model.safetensors")
    assert start.keys() == after.keys()
    return {name: value - after[name] for name, value in start.items()}


def metrics(folder: Path, case: str) -> list[dict[str, float]]:
    lines = (folder / case / "run" / "metrics.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if "loss" in each]


def check_moves(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], size: float) -> None:
    """The same to 1e-4 of the largest, and to the rounding of the weights of this size that were moved."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-4 * value.abs().max().item() + 2**-22 * size
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


FACTS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero2": {},
    "zero3": {"loaded_sharded": True},
    "zero3_offload": {"loaded_sharded": True},
    "fsdp2": {"sharded_layers": 4},
}
# tests/distributed/test_sharded.py takes steps of the first two, test_resume.py runs the second
SLOW = ("zero2", "zero3", "zero3_offload")


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    return [*[needs_deepspeed] * name.startswith("zero"), *[pytest.mark.slow] * (name in SLOW)]


BACKENDS = [pytest.param(name, marks=marks_of(name)) for name in FACTS]


@pytest.mark.parametrize("name", BACKENDS)
def test_two_processes_take_the_steps_of_one(alone: Path, tmp_path: Path, name: str) -> None:
    launch([WORKER, str(tmp_path), "2", *CASES], 2, ROOT, CONFIGS / f"{name}.yaml", TWO, {"DS_ACCELERATOR": "cpu"})
    for case in CASES:
        facts = facts_of(tmp_path, case)
        assert facts["processes"] == 2
        expected = {"loaded_sharded": False, "sharded_layers": 0} | FACTS[name]
        assert {key: facts[key] for key in expected} == expected
    expected_gradient = gradient(alone)
    assert expected_gradient["model.embed_tokens.weight"].abs().max() > 1e-3
    check_moves(gradient(tmp_path), expected_gradient, size=1.0)
    check_lora(alone, tmp_path, "lora")
    check_metrics(alone, tmp_path, CASES)


@pytest.mark.slow
@needs_bitsandbytes
def test_two_processes_train_an_adapter_on_quantised_weights(alone: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    launch([WORKER, str(one), "1", "qlora"], 1, ROOT)
    launch([WORKER, str(two), "2", "qlora"], 2, ROOT, CONFIGS / "ddp.yaml", TWO)
    check_lora(one, two, "qlora")
    check_metrics(one, two, ("qlora",))
    assert (metrics(one, "qlora")[0]["loss"]) != metrics(alone, "lora")[0]["loss"]


def check_lora(alone: Path, shared: Path, case: str) -> None:
    first, second = (load_file(folder / case / "start.safetensors") for folder in (alone, shared))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    expected = adapter_moves(alone, case)
    assert min(move.abs().max() for move in expected.values()) > 1e-5  # of A too, in the second step
    check_moves(adapter_moves(shared, case), expected, size=0.1)


def check_metrics(alone: Path, shared: Path, cases: tuple[str, ...]) -> None:
    for case in cases:
        one, two = metrics(alone, case), metrics(shared, case)
        assert len(one) == len(two) == (1 if case == "full" else 2)
        for first, second in zip(one, two, strict=True):
            names = [n for n in first if n.startswith(("loss", "kl/", "reward/", "guidance/", "entropy/"))]
            for name in (*names, "grad_norm"):
                assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-6, nan_ok=True), name
        assert 0 < one[0]["guidance/helped_frac"] < 1
        assert {"loss/entropy", "loss/lp_reg", "loss/siren"} <= set(one[0])
        if case != "full":
            assert one[0]["kl/k3_ref"] == pytest.approx(0, abs=1e-7)  # the adapter starts as nothing
            assert one[1]["kl/k3_ref"] > 1e-6


@needs_deepspeed
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "trainer.optim=sgd",
            "trainer.optim: 'sgd' would be replaced by DeepSpeed's Adam for CPUs, as the launch configuration offloads"
            " the optimiser; set it to 'adamw_torch', or launch without offload_optimizer_device.",
        ),
        (
            "model={path: builtin://starter, lora: {}, quantization: 8bit}",
            "model.quantization: '8bit' weights cannot be sharded; launch by ddp.yaml or zero2.yaml of"
            " recipes/accelerate, or remove it.",
        ),
    ],
)
def test_what_an_engine_would_do_otherwise_is_refused(tmp_path: Path, override: str, message: str) -> None:
    arguments = [str(ROOT / "scripts/train.py"), str(RECIPE), f"trainer.output_dir={tmp_path / 'run'}", override]
    variables = launched_environment(CONFIGS / "zero3_offload.yaml", TWO, ROOT) | {"DS_ACCELERATOR": "cpu"}
    status, output = run_forked(arguments, 1, ROOT, CONFIGS, (), variables)
    assert status == 2, output
    assert f"error: {message}\n" in output


# ---- several machines ------------------------------------------------------------------------------------------------


def settings(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return content


@pytest.mark.parametrize("name", FACTS)
def test_several_machines_differ_from_one_in_their_number_alone(name: str) -> None:
    one, several = settings(name), settings(f"{name}_multinode")
    assert several.pop("num_machines") > one.pop("num_machines") == 1
    assert several.pop("num_processes") == 2 * one.pop("num_processes")
    assert one.pop("machine_rank") == 0
    if "deepspeed_config" in several:  # or else it would start the others by ssh
        assert several["deepspeed_config"].pop("deepspeed_multinode_launcher") == "standard"
    assert several == one
    header = (CONFIGS / f"{name}_multinode.yaml").read_text()
    assert f"--config_file recipes/accelerate/{name}_multinode.yaml --machine_rank 0 --main_process_ip HOST" in header


def test_every_launch_configuration_is_started() -> None:
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names == {"single", "cpu2", *FACTS, *(f"{name}_multinode" for name in FACTS)}


@pytest.mark.slow
@needs_deepspeed
def test_two_launchers_meet_as_two_machines(tmp_path: Path) -> None:
    """By the accelerate launcher itself, once for each machine, both of them this one."""
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import PartialState\nfrom accelerate.utils import gather_object\n"
        "state = PartialState(cpu=True)\nfound = gather_object([state.process_index])\n"
        "open(f'rank-{state.process_index}', 'w').write(str(found))\nstate.destroy_process_group()\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2", *CPU]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    machines = [
        subprocess.Popen(
            [*command, str(CONFIGS / "zero3_multinode.yaml"), "--machine_rank", rank, *place, str(script)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(outputs)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["[0, 1]", "[0, 1]"]
