"""One model in every format: each reader gives the same tensors, whole or by rows, and reads nothing else."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.extrapolation.checkpoints import open_checkpoint, run_checkpoints
from rlvr.extrapolation.readers.pickles import BUDGET, MappedFiles
from rlvr.extrapolation.view import TensorInfo
from tests.conftest import tiny_model
from tests.unit.checkpoint_files import WRITERS, peak_growths, write_bin, write_safetensors, write_zero

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MIB = 2**20


def weights_of_model() -> dict[str, Tensor]:
    """Of an untied policy whose dimensions are odd, with buffers of other types and a number without a dimension."""
    weights = {name: value.detach().clone() for name, value in tiny_model(hidden_size=15).state_dict().items()}
    weights[HEAD] = weights[HEAD] + 1.0
    weights["model.counted"] = torch.arange(7)
    weights["model.halves"] = torch.randn(5, 3).bfloat16()
    weights["model.scalar"] = torch.tensor(0.7)
    weights["model.cube"] = torch.randn(5, 3, 2)
    return weights


def write_config(folder: Path, tied: bool | None = False) -> None:
    ties = {} if tied is None else {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"} | ties))


@pytest.mark.parametrize("kind", WRITERS)
def test_reader_gives_the_tensors_that_were_written(tmp_path: Path, kind: str) -> None:
    weights = weights_of_model()
    WRITERS[kind](tmp_path, weights)
    write_config(tmp_path)
    view = open_checkpoint(tmp_path)
    assert sorted(view.names()) == sorted(weights)
    assert view.aliases() == {}
    assert view.path == tmp_path
    assert view.step is None
    for name, expected in weights.items():
        assert view.info(name) == TensorInfo(tuple(expected.shape), expected.dtype)
        whole = view.read(name)
        assert whole.dtype == expected.dtype
        assert whole.is_contiguous()
        assert torch.equal(whole, expected), name
        if expected.dim():
            for first, last in ((0, 3), (2, 4), (4, None), (3, 3), (0, 99), (-2, None)):
                assert torch.equal(view.read(name, first, last), expected[first:last]), (name, first, last)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_was_read_is_no_part_of_the_file(tmp_path: Path, kind: str) -> None:
    """Whoever writes into it changes neither the file nor the next read."""
    weights = weights_of_model()
    WRITERS[kind](tmp_path, weights)
    write_config(tmp_path)
    view = open_checkpoint(tmp_path)
    for name in (HEAD, "model.counted"):
        view.read(name).zero_()
        view.read(name, 1, 2).zero_()
        assert torch.equal(view.read(name), weights[name])


@pytest.mark.skipif(sys.platform != "linux", reason="measures by /proc")
@pytest.mark.parametrize("kind", ["safetensors", "sharded_safetensors", "bin", "sharded_bin", "dcp", "zero2", "zero3"])
def test_only_what_is_asked_for_is_in_memory(tmp_path: Path, kind: str) -> None:
    """A quarter of the file at most, and once more the pages that it was copied from, where a format is read by mapping
    it; of rows nearly nothing."""
    small, large = tmp_path / "small", tmp_path / "large"
    weights = {f"tensor.{i}": torch.full((4096, 3072), float(i)) for i in range(4)}
    size = weights["tensor.2"].nbytes
    assert size == 48 * MIB
    for folder, each in ((small, weights_of_model()), (large, weights)):
        folder.mkdir()
        WRITERS[kind](folder, each)
    rows, whole = peak_growths(small, large, "tensor.2", (4000, 4010), (0, None))
    # torch.distributed.checkpoint loads the whole of a rank's piece.
    assert rows < (size if kind == "dcp" else 0) + 8 * MIB
    # The lower bound shows that something was measured.
    assert size - MIB <= whole < (1 if "safetensors" in kind else 2) * size + 16 * MIB


def test_mapped_files_are_let_go_once_enough_was_copied(tmp_path: Path) -> None:
    """Pages that were read count as memory of the process while their file is mapped."""
    loads: list[str] = []

    def load(path: Path) -> str:
        loads.append(path.name)
        return path.read_text()

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("first")
    two.write_text("second")
    mapped = MappedFiles(load)
    for _ in range(3):
        assert mapped.content(one, BUDGET // 8) == "first"
        assert mapped.content(two, BUDGET // 8) == "second"
    assert loads == ["one", "two"]
    mapped.content(one, BUDGET // 2)
    assert loads == ["one", "two", "one"]
    one.write_text("changed")
    assert mapped.content(one, 0) == "changed"
    assert mapped.content(two, 0) == "second"
    assert loads == ["one", "two", "one", "one", "two"]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 5, 8])
def test_zero_partitions_of_any_number_of_ranks(tmp_path: Path, stage: int, world: int) -> None:
    weights = weights_of_model()
    frozen = ("model.norm.weight", "model.layers.0.mlp.up_proj.weight")
    write_zero(tmp_path, weights, stage, world, frozen)
    write_config(tmp_path)
    view = open_checkpoint(tmp_path)
    assert list(view.names()) == list(weights)
    for name, expected in weights.items():
        assert torch.equal(view.read(name), expected), name
        if expected.dim():
            assert torch.equal(view.read(name, 1, 3), expected[1:3]), name
    assert torch.equal(open_checkpoint(tmp_path / "global_step7").read(HEAD), weights[HEAD])


def test_zero_partitions_go_before_the_rounded_weights_beside_them(tmp_path: Path) -> None:
    weights = weights_of_model()
    write_zero(tmp_path, weights, 3)
    write_safetensors(tmp_path, {name: value.bfloat16() for name, value in weights.items()})
    write_config(tmp_path)
    assert torch.equal(open_checkpoint(tmp_path).read(HEAD), weights[HEAD])
    assert torch.equal(open_checkpoint(tmp_path / "model.safetensors").read(HEAD), weights[HEAD].bfloat16())


# ---- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, None])
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("stored", ["both", "embedding"])
def test_tied_head_is_an_alias_whether_or_not_it_is_stored(
    tmp_path: Path, kind: str, stored: str, tied: bool | None
) -> None:
    """Where no config says so, the head that is missing or has the same bits does."""
    weights = weights_of_model()
    weights[HEAD] = weights[EMBEDDING].clone()
    written = weights if stored == "both" else {name: value for name, value in weights.items() if name != HEAD}
    WRITERS[kind](tmp_path, written)
    write_config(tmp_path, tied)
    view = open_checkpoint(tmp_path)
    assert HEAD not in view.names()
    assert view.aliases() == {HEAD: EMBEDDING}
    assert view.info(HEAD) == view.info(EMBEDDING)
    assert torch.equal(view.read(HEAD, 2, 5), weights[EMBEDDING][2:5])


def test_untied_head_without_a_config(tmp_path: Path) -> None:
    write_safetensors(tmp_path, weights_of_model())
    view = open_checkpoint(tmp_path)
    assert view.aliases() == {}
    assert HEAD in view.names()


def test_bin_file_that_stores_a_tied_tensor_once(tmp_path: Path) -> None:
    weights = weights_of_model()
    weights[HEAD] = weights[EMBEDDING]
    weights["model.again"] = weights["model.halves"]
    write_bin(tmp_path, weights)
    view = open_checkpoint(tmp_path)
    assert view.aliases() == {HEAD: EMBEDDING, "model.again": "model.halves"}
    assert torch.equal(view.read("model.again"), weights["model.halves"])


def test_file_that_keeps_the_tied_tensor_under_the_name_of_the_head(tmp_path: Path) -> None:
    """As safetensors' save_model does, which keeps the first name by the alphabet and notes the other."""
    from safetensors.torch import load_file, save_model

    model = tiny_model()
    save_model(model, str(tmp_path / "model.safetensors"))
    assert EMBEDDING not in load_file(tmp_path / "model.safetensors")
    for config in (None, True):
        if config:
            write_config(tmp_path, config)
        view = open_checkpoint(tmp_path)
        assert view.aliases() == {HEAD: EMBEDDING}
        assert HEAD not in view.names()
        assert torch.equal(view.read(EMBEDDING), model.lm_head.weight)


def test_saved_models_of_transformers(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "several", max_shard_size="3KB")
    assert (tmp_path / "several" / "model.safetensors.index.json").is_file()
    for folder in ("one", "several"):
        view = open_checkpoint(tmp_path / folder)
        assert view.aliases() == {HEAD: EMBEDDING}
        parameters = dict(model.named_parameters())
        assert sorted(view.names()) == sorted(parameters)
        assert all(torch.equal(view.read(name), value) for name, value in parameters.items())


# ---- runs ------------------------------------------------------------------------------------------------------------


def make_run(folder: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        write_safetensors(checkpoint, weights_of_model())
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "policy").mkdir(parents=True)
    write_safetensors(folder / "policy", weights_of_model())


def test_checkpoints_of_a_run_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    make_run(tmp_path, (20, 5, 100))
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "checkpoint-7").write_text("no folder")
    found = run_checkpoints(tmp_path)
    names = [(5, "checkpoint-5"), (20, "checkpoint-20"), (100, "checkpoint-100"), (100, "policy")]
    assert [(step, path.name) for step, path in found] == names
    assert [open_checkpoint(path).step for _, path in found] == [5, 20, 100, 100]


def test_step_of_a_policy_alone_is_that_of_the_metrics(tmp_path: Path) -> None:
    make_run(tmp_path, ())
    with pytest.raises(CheckpointError, match="nothing says of which step"):
        run_checkpoints(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 12, "train_loss": 0.1}\n')
    assert run_checkpoints(tmp_path) == [(12, tmp_path / "policy")]
    (tmp_path / "trainer_state.json").write_text('{"global_step": 13}')
    assert run_checkpoints(tmp_path) == [(13, tmp_path / "policy")]


def test_folder_without_checkpoints_is_no_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=r"trainer\.output_dir of a run"):
            run_checkpoints(folder)
