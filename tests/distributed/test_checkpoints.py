"""Checkpoints that two ranks write under ZeRO and FSDP2 hold, to the bit, the model that one process saves."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlvr.errors import CheckpointError
from rlvr.extrapolation.checkpoints import open_checkpoint, run_checkpoints
from rlvr.extrapolation.view import WeightView
from tests.conftest import ROOT
from tests.distributed.checkpoint_worker import CASES, STEPS, ZERO_CASES, model_for
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed
from tests.distributed.test_two_processes import launch

WORKER = str(ROOT / "tests/distributed/checkpoint_worker.py")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SHARDS = ("--fsdp_state_dict_type", "SHARDED_STATE_DICT")
pytestmark = pytest.mark.distributed


def train(folder: Path, config: str, cases: tuple[str, ...], *options: str) -> Path:
    launch([WORKER, str(folder), "2", *cases], 2, ROOT, CONFIGS / config, options, {"DS_ACCELERATOR": "cpu"})
    return folder


@pytest.fixture(scope="module")
def zero2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("zero2"), "zero2.yaml", ZERO_CASES)


@pytest.fixture(scope="module")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("zero3"), "zero3.yaml", ZERO_CASES)


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("fsdp2"), "fsdp2.yaml", CASES, *SHARDS)


@pytest.fixture(scope="module")
def fsdp2_whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the state dict gathered, as the recipe of this project has it."""
    return train(tmp_path_factory.mktemp("fsdp2_whole"), "fsdp2.yaml", CASES)


ENGINES = [
    *(pytest.param("zero2", case, marks=needs_deepspeed) for case in ZERO_CASES),
    *(pytest.param("zero3", case, marks=needs_deepspeed) for case in ZERO_CASES),
    *(pytest.param("fsdp2", case) for case in CASES),
    *(pytest.param("fsdp2_whole", case) for case in CASES),
]


def check_same(view: WeightView, other: WeightView) -> None:
    """The same tensors under the same names, and rows of them."""
    assert sorted(view.names()) == sorted(other.names())
    assert view.aliases() == other.aliases()
    for name in view.names():
        info, expected = view.info(name), other.read(name)
        whole = view.read(name)
        assert (whole.shape, whole.dtype) == (info.shape, info.dtype)
        # Of bf16 training the master weights are float32, and the saved ones these rounded.
        assert torch.equal(whole.to(expected.dtype), expected), name
        for first in range(len(whole)):
            assert torch.equal(view.read(name, first, first + 2), whole[first : first + 2]), name


@pytest.mark.parametrize(("engine", "case"), ENGINES)
def test_checkpoint_of_an_engine_is_the_saved_model(engine: str, case: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(engine) / case
    assert run_checkpoints(folder) == [(STEPS, folder / f"checkpoint-{STEPS}")]
    view = open_checkpoint(folder / f"checkpoint-{STEPS}")
    assert view.step == STEPS
    check_same(view, open_checkpoint(folder / "after"))
    expected = {name for name, _ in model_for(case).named_parameters()} | {n for n, _ in saved_buffers(case)}
    assert set(view.names()) == expected
    assert view.aliases() == ({HEAD: EMBEDDING} if case == "tied" else {})
    trained = [n for n, p in model_for(case).named_parameters() if p.requires_grad]
    start = model_for(case).state_dict()
    assert all(not torch.equal(view.read(name), start[name]) for name in trained)
    if engine == "fsdp2_whole":  # the engine writes the same a second time
        check_same(open_checkpoint(folder / f"checkpoint-{STEPS}" / "pytorch_model_fsdp.bin"), view)
    if case == "bf16":
        weights = load_file(folder / "after" / "model.safetensors")
        assert all(view.info(name).dtype == torch.float32 for name in trained)
        assert any(not torch.equal(view.read(name), weights[name].float()) for name in trained)


def saved_buffers(case: str) -> list[tuple[str, torch.Tensor]]:
    model = model_for(case)
    return [(name, value) for name, value in model.named_buffers() if name in model.state_dict()]


@needs_deepspeed
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_the_model_of_a_checkpoint_saved_by_one_process(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(engine) / "tied"
    view = open_checkpoint(folder / f"checkpoint-{STEPS}")
    model = AutoModelForCausalLM.from_pretrained(folder / "after")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="3KB")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 2
    for other in ("one", "several", "bin"):
        check_same(view, open_checkpoint(tmp_path / other))


@needs_deepspeed
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_checkpoint_is_read_where_deepspeed_is_not_installed(engine: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(engine) / "tied" / f"checkpoint-{STEPS}"
    program = (
        "import sys\nsys.modules['deepspeed'] = None\nfrom pathlib import Path\n"
        "from rlvr.extrapolation.checkpoints import open_checkpoint\n"
        f"view = open_checkpoint(Path({str(folder)!r}))\n"
        "print(sum(view.read(name).numel() for name in view.names()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(sum(p.numel() for p in model_for("tied").parameters())), done.stderr


RANK_FILES = [
    pytest.param("zero2", "global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt", marks=needs_deepspeed),
    pytest.param("zero2", "global_step2/mp_rank_00_model_states.pt", marks=needs_deepspeed),
    pytest.param("zero3", "global_step2/zero_pp_rank_1_mp_rank_00_optim_states.pt", marks=needs_deepspeed),
    pytest.param("zero3", "global_step2/zero_pp_rank_1_mp_rank_00_model_states.pt", marks=needs_deepspeed),
    pytest.param("fsdp2", "pytorch_model_fsdp_0/__1_0.distcp"),
    pytest.param("fsdp2", "pytorch_model_fsdp_0/.metadata"),
]


@pytest.mark.parametrize(("engine", "file"), RANK_FILES)
def test_file_of_a_rank_that_is_missing_or_truncated(
    engine: str, file: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Although under ZeRO the model.safetensors beside it is whole: it is another, rounded, checkpoint."""
    shutil.copytree(request.getfixturevalue(engine) / "frozen" / f"checkpoint-{STEPS}", tmp_path / "copy")
    path = tmp_path / "copy" / file
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.95):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match="truncated"):
            open_checkpoint(tmp_path / "copy")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is missing|lacks the \*_|has no \*_"):
        open_checkpoint(tmp_path / "copy")
    path.write_bytes(whole)
    open_checkpoint(tmp_path / "copy")
