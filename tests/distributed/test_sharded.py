"""ZeRO-2, ZeRO-3 and FSDP2 on two CPU processes (gloo) take the steps that one process takes with the whole batch.

The optimiser is plain SGD, so that each comparison of weights is one of gradients: one that is missing, doubled or
halved shows in full.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.distributed.sharded_worker import CASES, SGD, model_of
from tests.distributed.test_two_processes import launch

WORKER, CONFIGS = str(ROOT / "tests/distributed/sharded_worker.py"), ROOT / "tests/distributed/configs"
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: pip install 'rlvr[deepspeed]'"
)
pytestmark = pytest.mark.distributed


def run_cases(folder: Path, processes: int, config: str, *options: str, cases: tuple[str, ...] = tuple(CASES)) -> None:
    # From the root, against which the launch configuration names its files.
    variables = {"DS_ACCELERATOR": "cpu"}
    launch([WORKER, str(folder), str(processes), *cases], processes, ROOT, CONFIGS / config, options, variables)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_cases(folder, 1, "")
    return folder


def moves(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """(weights before - weights after) / learning rate, by name: the gradient, or the sum of those of two steps."""
    after = load_file(folder / case / "after" / "model.safetensors")
    learning_rate = (SGD | CASES[case])["learning_rate"]
    # Some engines save a tied head under both of its names: named_parameters() has the first.
    return {n: (p.detach() - after[n]) / learning_rate for n, p in model_of(case).named_parameters()}


def check_case(alone: Path, sharded: Path, case: str, share_held: float) -> None:
    """The same moves and metrics as one process, by a rank that held only its share of each matrix in between."""
    expected, actual = moves(alone, case), moves(sharded, case)
    for name, value in expected.items():
        # Relative to the largest entry: a difference of weights is exact to their own rounding only.
        tolerance = 1e-4 * value.abs().max().item()
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    head = "model.embed_tokens.weight" if case == "tied" else "lm_head.weight"
    assert expected[head].norm() > 0.1
    one, two = (torch.load(folder / case / "metrics.pt", weights_only=True) for folder in (alone, sharded))
    assert len(one) == len(two) == CASES[case].get("max_steps", 1) + 1  # the last line sums up the run
    for first, second in zip(one[:-1], two[:-1], strict=True):
        for name in ("loss", "loss/policy", "entropy/mean_token", "ratio/mean", "grad_norm"):
            assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-7), name
    for name in ("reward/mean", "advantage/abs_mean", "groups/solved_frac"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5), name
    held = torch.load(sharded / case / "held_values.pt", weights_only=True)
    assert {n: held[n] for n in expected} == {n: int(share_held * v.numel()) for n, v in expected.items()}


@needs_deepspeed
@pytest.mark.parametrize(("stage", "share_held"), [("zero2", 1.0), ("zero3", 0.0)])
def test_zero_takes_the_steps_of_one_process(alone: Path, tmp_path: Path, stage: str, share_held: float) -> None:
    run_cases(tmp_path, 2, f"{stage}.yaml")
    for case in CASES:
        check_case(alone, tmp_path, case, share_held)


def test_fsdp2_takes_the_steps_of_one_process(alone: Path, tmp_path: Path) -> None:
    run_cases(tmp_path, 2, "fsdp2.yaml")
    for case in CASES:
        check_case(alone, tmp_path, case, 0.5)


def test_fsdp2_with_the_head_sharded_by_itself_takes_the_steps_of_one_process(alone: Path, tmp_path: Path) -> None:
    cases = ("untied", "two_steps")  # FSDP2 keeps a tied head together with the embeddings
    run_cases(tmp_path, 2, "fsdp2.yaml", "--fsdp_transformer_layer_cls_to_wrap", "Linear", cases=cases)
    for case in cases:
        check_case(alone, tmp_path, case, 0.5)
