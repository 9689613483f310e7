"""Checkpoints that are damaged, incomplete or hostile are refused in a sentence with path and remedy; no code runs."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlvr.errors import CheckpointError, UserError
from rlvr.extrapolation.checkpoints import open_checkpoint
from tests.unit.checkpoint_files import WRITERS, write_bin, write_safetensors, write_sharded_safetensors, write_zero
from tests.unit.test_checkpoint_readers import HEAD, weights_of_model, write_config

WEIGHTS = ("*.safetensors", "*.bin", "**/*.distcp", "**/*_states.pt")
REMEDY = re.compile(r"; .*\b(copy|save|give|remove|mend)\b")


class Bomb:
    """Pickled, it has whoever unpickles it make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def read_all(folder: Path) -> None:
    view = open_checkpoint(folder)
    for name in view.names():
        view.read(name)


def check_refused(folder: Path, message: str, named: Path | None = None) -> None:
    """Opening it, or else reading all of it, ends in one sentence that names a path and says what to do."""
    with pytest.raises(CheckpointError, match=message) as raised:
        read_all(folder)
    text = str(raised.value)
    assert str(named or folder) in text
    assert REMEDY.search(text), text
    assert "\n" not in text
    assert isinstance(raised.value, UserError)
    assert raised.value.exit_code == 2


def weight_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})


# ---- nothing there ---------------------------------------------------------------------------------------------------


def test_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path: Path) -> None:
    check_refused(
        tmp_path, r"holds no checkpoint.*adapter_config\.json.*global_step.*fsdp_0.*model\.safetensors.*\.bin"
    )
    (tmp_path / "policy").mkdir()
    (tmp_path / "checkpoint-10").mkdir()
    check_refused(tmp_path, "give one of its checkpoint-10, policy$")
    check_refused(tmp_path / "missing", "does not exist; give the folder")
    (tmp_path / "weights.npz").write_bytes(b"")
    check_refused(tmp_path / "weights.npz", "has no known format; give a folder, or a file ending in .safetensors")


def test_unknown_tensor_is_named_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    write_safetensors(tmp_path, weights_of_model())
    with pytest.raises(CheckpointError, match=r"has no tensor 'lm_heat\.weight'; did you mean 'lm_head\.weight'\?"):
        open_checkpoint(tmp_path).read("lm_heat.weight")


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_and_missing_files(tmp_path: Path, kind: str) -> None:
    """Any of the files of weights, cut to some share of its length or gone."""
    WRITERS[kind](tmp_path, weights_of_model())
    write_config(tmp_path)
    for path in weight_files(tmp_path):
        whole = path.read_bytes()
        for share in (0.99, 0.5, 0.01, 0.0):
            path.write_bytes(whole[: int(len(whole) * share)])
            check_refused(tmp_path, "truncated", tmp_path)
        path.unlink()
        check_refused(tmp_path, "is missing|holds no checkpoint|lacks the|has no \\*_model_states.pt")
        path.write_bytes(whole)
    view = open_checkpoint(tmp_path)
    assert torch.equal(view.read(HEAD), weights_of_model()[HEAD])


@pytest.mark.parametrize("kind", WRITERS)
def test_files_of_something_else(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path, weights_of_model())
    for path in weight_files(tmp_path):
        whole = path.read_bytes()
        for other in (b"\x00" * len(whole), b"version https://git-lfs.github.com/spec/v1\n" * (len(whole) // 40)):
            path.write_bytes(other)
            check_refused(tmp_path, "truncated|damaged|more than tensors")
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", WRITERS)
def test_file_that_shrinks_after_it_was_read(tmp_path: Path, kind: str) -> None:
    """A file that stays mapped would end the process where its end is gone."""
    WRITERS[kind](tmp_path, weights_of_model())
    write_config(tmp_path)
    view = open_checkpoint(tmp_path)
    assert torch.equal(view.read(HEAD), weights_of_model()[HEAD])
    files = [path for path in weight_files(tmp_path) if "model_states" not in path.name]
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        view.read(HEAD)
    for path in files:
        path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        view.read(HEAD)


# ---- indices ---------------------------------------------------------------------------------------------------------


def change_index(folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


FIRST, SECOND = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update({HEAD: "gone.safetensors"}), r"gone\.safetensors is missing, which model\.safe"),
        (lambda index: index.update({"model.more": FIRST}), r"does not hold 'model\.more', which .* puts there"),
        (lambda index: index.pop("model.counted"), r"holds 'model\.counted', which .* does not name"),
        (lambda index: index.update({"model.norm.weight": "../x"}), "which is not one of its own folder"),
        (lambda index: index.update({"model.norm.weight": 3}), "no `weight_map` from tensors to files"),
    ],
)
def test_index_that_is_wrong(tmp_path: Path, change: Callable[[dict[str, str]], Any], message: str) -> None:
    write_sharded_safetensors(tmp_path, weights_of_model())
    change_index(tmp_path, change)
    check_refused(tmp_path, message)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded_safetensors(tmp_path, weights_of_model())
    first, second = load_file(tmp_path / FIRST), load_file(tmp_path / SECOND)
    save_file(second | {next(iter(first)): next(iter(first.values()))}, tmp_path / SECOND)
    check_refused(tmp_path, f"{SECOND} holds .* puts into {FIRST}; the two overlap")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000, "{}", "\udc80"])
def test_index_that_is_no_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    check_refused(tmp_path, "index.json")


# ---- pickles ---------------------------------------------------------------------------------------------------------


def test_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    bomb = Bomb(tmp_path / "made")
    weights: dict[str, Any] = {"model.norm.weight": torch.ones(3), "more": bomb}
    for content in (weights, bomb, [bomb]):
        torch.save(content, tmp_path / "pytorch_model.bin")
        check_refused(tmp_path, "holds more than tensors, which would run posix.mkdir, so it was not read")
        torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        check_refused(tmp_path, "format of torch before 1.6")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(bomb))
    check_refused(tmp_path, "truncated, or in the format of torch before")
    assert not (tmp_path / "made").exists()


def test_bin_file_with_more_than_tensors(tmp_path: Path) -> None:
    for content, message in (
        ({"epoch": 3}, "holds int 'epoch', which is no dense tensor"),
        ({"state_dict": {"a": torch.ones(2)}}, "holds dict 'state_dict'"),
        ({3: torch.ones(2)}, "holds Tensor 3"),
        ({"a": torch.ones(2, 2).to_sparse()}, "no dense tensor"),
        (torch.ones(2), "instead of a state dict"),
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        check_refused(tmp_path, message)


@pytest.mark.parametrize("file", ["zero_pp_rank_1_mp_rank_00_model_states.pt", "*_rank_2_mp_rank_00_optim_states.pt"])
def test_zero_file_with_code_is_not_run(tmp_path: Path, file: str) -> None:
    weights = weights_of_model()
    write_zero(tmp_path, weights, 3, frozen=("model.norm.weight",))
    write_config(tmp_path)
    (path,) = (tmp_path / "global_step7").glob(file)
    torch.save(torch.load(path, weights_only=True) | {"more": Bomb(tmp_path / "made")}, path)
    check_refused(tmp_path, "holds more than tensors, which would run posix.mkdir")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["dcp", "plain_dcp"])
def test_dcp_file_with_code_is_not_run(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path, weights_of_model())
    (metadata,) = tmp_path.glob("**/.metadata")
    whole = metadata.read_bytes()
    content = pickle.loads(whole)
    for content.planner_data in (Bomb(tmp_path / "made"), {"a": (Bomb(tmp_path / "made"),)}):
        metadata.write_bytes(pickle.dumps(content))
        check_refused(tmp_path, "holds more than tensors, which would run posix.mkdir")
    for damaged in (b"", whole[:-20], b"\x80\x04N."):
        metadata.write_bytes(damaged)
        check_refused(tmp_path, "truncated or damaged|does not say where the tensors lie")
    metadata.write_bytes(whole)
    (shard,) = tmp_path.glob("**/*.distcp")
    size = shard.stat().st_size
    torch.save(Bomb(tmp_path / "made"), shard)
    bomb = shard.read_bytes()
    place = next(place for place in content.storage_data.values() if place.offset == 0)
    place.length = len(bomb)
    shard.write_bytes(bomb + b"\x00" * (size - len(bomb)))
    content.planner_data = pickle.loads(whole).planner_data
    metadata.write_bytes(pickle.dumps(content))
    check_refused(tmp_path, "holds more than tensors, which would run posix.mkdir")
    assert not (tmp_path / "made").exists()


# ---- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_that_are_missing_or_too_many(tmp_path: Path, stage: int) -> None:
    write_zero(tmp_path, weights_of_model(), stage)
    folder = tmp_path / "global_step7"
    last = folder / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt"
    last.rename(tmp_path / "aside")
    check_refused(tmp_path, r"lacks the \*_optim_states.pt of rank 2, of 3; copy what is missing")
    (tmp_path / "aside").rename(folder / "zero_pp_rank_3_mp_rank_00_optim_states.pt")
    check_refused(tmp_path, "lacks the .* of rank 2")
    (folder / "zero_pp_rank_3_mp_rank_00_optim_states.pt").rename(last)
    for extra, message in (
        ("zero_pp_rank_3_mp_rank_00_optim_states.pt", "is of none of the 3 ranks of this run; remove it"),
        ("zero_pp_rank_2_mp_rank_00_optim_states.pt", "are of the same rank; remove the older"),
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallelism, which is not read"),
    ):
        (folder / extra).write_bytes(last.read_bytes())
        check_refused(tmp_path, message)
        (folder / extra).unlink()
    open_checkpoint(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_rank_of_another_checkpoint(tmp_path: Path, stage: int) -> None:
    weights = weights_of_model()
    (tmp_path / "other").mkdir()
    write_zero(tmp_path, weights, stage)
    write_zero(tmp_path / "other", {name: value for name, value in weights.items() if name != HEAD}, stage)
    file = "global_step7/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (tmp_path / file).write_bytes((tmp_path / "other" / file).read_bytes())
    check_refused(tmp_path, "its files are not of one step")


def test_folders_of_several_steps(tmp_path: Path) -> None:
    write_zero(tmp_path, weights_of_model(), 3)
    (tmp_path / "global_step3").mkdir()
    open_checkpoint(tmp_path)
    (tmp_path / "latest").write_text("global_step9")
    check_refused(tmp_path, "names the folder 'global_step9', which is not there")
    (tmp_path / "latest").unlink()
    check_refused(tmp_path, "several ZeRO checkpoints, global_step3, global_step7, and no latest")


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero2", "zero3", "dcp"])
def test_engine_names_that_are_not_those_of_a_saved_model(tmp_path: Path, kind: str) -> None:
    """transformers fuses experts in memory; whoever wrote them as they are would write no model."""
    WRITERS[kind](tmp_path, weights_of_model())
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe", "tie_word_embeddings": false}')
    check_refused(tmp_path, "the parameters of a qwen3_moe as they are in memory.* save_pretrained wrote")
    write_bin(tmp_path, weights_of_model())
    assert HEAD in open_checkpoint(tmp_path / "pytorch_model.bin").names()


def test_adapter_in_an_engine_without_its_settings(tmp_path: Path) -> None:
    weights = weights_of_model() | {"base_model.model.q_proj.lora_A.default.weight": torch.ones(2, 3)}
    write_zero(tmp_path, weights, 3)
    check_refused(tmp_path, "holds an adapter as it is in memory; give the folder that has its adapter_config.json")
