"""Periodic jumps of two processes, under DDP, ZeRO-2, ZeRO-3 and FSDP2, are those of one process."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import ROOT
from tests.distributed.periodic_worker import BF16_CASES, CASES, PHASES, SAVED
from tests.distributed.sharded_worker import model_of
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed
from tests.distributed.test_two_processes import CONFIG, launch
from tests.unit.test_periodic_jumps import moves

WORKER = str(ROOT / "tests/distributed/periodic_worker.py")
BETA = (PHASES["train_steps"] + PHASES["skip_steps"]) / PHASES["train_steps"]
DDP, FSDP2 = "ddp", "fsdp2"
ZERO = [pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]
ENGINES = [DDP, *ZERO, FSDP2]
pytestmark = pytest.mark.distributed
Weights = dict[str, Tensor]


def run(folder: Path, processes: int, config: Path, cases: dict[str, object], *options: str) -> Path:
    arguments = [WORKER, str(folder), str(processes), *cases]
    launch(arguments, processes, ROOT, config, options, {"DS_ACCELERATOR": "cpu"})
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("alone"), 1, CONFIG, CASES)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("ddp"), 2, CONFIG, CASES)


@pytest.fixture(scope="module")
def zero2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("zero2"), 2, CONFIGS / "zero2.yaml", CASES | BF16_CASES)


@pytest.fixture(scope="module")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attention matrices have 256 values or fewer and are kept whole between steps; those of the MLP have 512."""
    folder = tmp_path_factory.mktemp("zero3")
    settings = json.loads((CONFIGS / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 300
    settings["bf16"] = {"enabled": "auto"}
    file = folder / "zero3.json"
    file.write_text(json.dumps(settings))
    return run(folder, 2, CONFIGS / "zero3.yaml", CASES | BF16_CASES, "--deepspeed_config_file", str(file))


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("fsdp2"), 2, CONFIGS / "fsdp2.yaml", CASES)


def weights(folder: Path, case: str, which: str = "after") -> Weights:
    return load_file(folder / case / which / "model.safetensors")


def check_close(found: Weights, expected: Weights, tolerance: float) -> None:
    """Relative to how far a tensor has moved from where all runs start."""
    start = {name: each.detach() for name, each in model_of("untied").named_parameters()}
    assert found.keys() == expected.keys() == start.keys()
    for name, value in expected.items():
        moved = (value - start[name]).abs().max().item()
        assert moved > 0
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=tolerance * moved, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_those_of_one_process(alone: Path, engine: str, case: str, request: pytest.FixtureRequest) -> None:
    check_close(weights(request.getfixturevalue(engine), case), weights(alone, case), 1e-3)


def test_the_cases_differ(alone: Path) -> None:
    """Or the comparisons above would be of runs without jumps."""
    found = {case: weights(alone, case) for case in CASES}
    assert all(torch.equal(found["undone"][name], found["plain"][name]) for name in found["plain"])
    start = {name: each.detach() for name, each in model_of("untied").named_parameters()}
    for name in filter(moves, start):
        far = [(found[case][name] - start[name]).norm().item() for case in ("plain", "reset", "jumps")]
        assert far[0] * 2 < far[1] < far[2], name


@pytest.mark.parametrize("engine", ENGINES)
def test_undone_jumps_leave_no_trace(engine: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(engine)
    found, expected = weights(folder, "undone"), weights(folder, "plain")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_within_a_phase(engine: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(engine)
    check_close(weights(folder, "jumps", "resumed"), weights(folder, "jumps"), 1e-5)
    files = list((folder / "jumps" / f"checkpoint-{SAVED}").glob("phase-start-*.safetensors"))
    assert len(files) == (1 if engine == DDP else 2)
    held = [sum(each.numel() for each in load_file(file).values()) for file in files]
    moving = sum(each.numel() for name, each in model_of("untied").named_parameters() if moves(name))
    assert sum(held) == moving
    assert max(held) < moving or engine == DDP


@pytest.mark.parametrize("engine", ZERO)
def test_weights_of_the_optimiser_jump_and_the_model_has_them_rounded(
    engine: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(engine)
    plain, jumped = (torch.load(folder / f"{case}_bf16" / "full_precision.pt") for case in ("plain", "jump"))
    start, _, reached = plain
    for name, end in reached.items():
        expected = start[name] + BETA * (end - start[name]) if moves(name) else end
        torch.testing.assert_close(jumped[2][name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in weights(folder, "jump_bf16").items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, jumped[-1][name].bfloat16()), name
