"""Checkpoints that are computed and written in pieces: what is in the files, and that they are whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation import sources as reading
from rlvr.extrapolation.operations import extrapolate, timber
from rlvr.extrapolation.rules import POOR_FIT, Rules, treatments
from rlvr.extrapolation.safetensors_file import ShardWriter, in_file_order
from rlvr.extrapolation.sources import Sources
from rlvr.extrapolation.view import TensorInfo
from rlvr.extrapolation.writing import Job, Written, gated, write_checkpoint
from tests.unit.extrapolation_cases import (
    ATTENTION,
    COUNTER,
    EMBEDDING,
    HEAD,
    MLP,
    NORM,
    PlainView,
    Tensors,
    load,
    same,
    save,
    tensors_of,
)

ALL = Rules(default_copies=False)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even these tensors are read in several blocks of rows."""
    monkeypatch.setattr(reading, "BLOCK_VALUES", 20)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / "base", tensors_of(0), 0), save(tmp_path / "tuned", tensors_of(1), 100)]


def write(
    paths: list[Path],
    out: Path,
    alpha: float = 1.5,
    rules: Rules = ALL,
    dtype: torch.dtype | None = None,
    max_bytes: int = 10**9,
) -> Written:
    sources = Sources([PlainView(path) for path in paths])
    job = Job("extrapolate", {"alpha": alpha}, sources, treatments(sources.tuned, rules), dtype)
    return write_checkpoint(job, out, max_bytes, {}, lambda _: None, print)


def change(path: Path, **tensors: Any) -> None:
    """Sets tensors of a checkpoint, by name; None takes one out."""
    changed = {**load(path), **tensors}
    save_file({name: each for name, each in changed.items() if each is not None}, path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("end", [0, 1])
def test_ends_are_the_checkpoints_bit_for_bit(tmp_path: Path, dtype: torch.dtype, end: int) -> None:
    models = [tensors_of(0, dtype), tensors_of(1, dtype)]
    write([save(tmp_path / f"{n}", model) for n, model in enumerate(models)], tmp_path / "out", alpha=float(end))
    expected = models[end] | {COUNTER: models[1][COUNTER]}
    assert same(load(tmp_path / "out"), expected)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_values_are_those_of_the_operation(pair: list[Path], tmp_path: Path, alpha: float) -> None:
    write(pair, tmp_path / "out", alpha)
    base, tuned = load(pair[0]), load(pair[1])
    expected = {name: extrapolate(base[name], tuned[name], alpha) for name in base} | {COUNTER: tuned[COUNTER]}
    assert same(load(tmp_path / "out"), expected)


def test_casts_once_at_the_end(tmp_path: Path) -> None:
    base, tuned = tensors_of(0, torch.bfloat16), tensors_of(1, torch.bfloat16)
    write([save(tmp_path / "a", base), save(tmp_path / "b", tuned)], tmp_path / "out", 1.7)
    expected = extrapolate(base[MLP], tuned[MLP], 1.7).bfloat16()
    assert torch.equal(load(tmp_path / "out")[MLP], expected)


def test_the_tuned_dtype_is_stored_unless_another_is_given(tmp_path: Path) -> None:
    base, tuned = tensors_of(0, torch.float32), tensors_of(1, torch.bfloat16)
    paths = [save(tmp_path / "a", base), save(tmp_path / "b", tuned)]
    write(paths, tmp_path / "stored")
    assert {name: each.dtype for name, each in load(tmp_path / "stored").items()} == {
        name: each.dtype for name, each in tuned.items()
    }
    assert json.loads((tmp_path / "stored/config.json").read_text())["dtype"] == "bfloat16"
    write(paths, tmp_path / "given", dtype=torch.float32)
    given = load(tmp_path / "given")
    assert given.pop(COUNTER).dtype == torch.int64
    assert {each.dtype for each in given.values()} == {torch.float32}
    assert torch.equal(given[MLP], extrapolate(base[MLP], tuned[MLP], 1.5))
    assert json.loads((tmp_path / "given/config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("max_bytes", [1, 300, 500])
def test_sharded_is_unsharded(pair: list[Path], tmp_path: Path, max_bytes: int) -> None:
    one, several = write(pair, tmp_path / "one"), write(pair, tmp_path / "several", max_bytes=max_bytes)
    assert one.files == 1
    assert several.files > 1
    assert not (tmp_path / "one/model.safetensors.index.json").exists()
    assert same(load(tmp_path / "one"), load(tmp_path / "several"))
    index = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == several.num_bytes
    for name, file in index["weight_map"].items():
        assert name in load_of(tmp_path / "several" / file)
    for file in set(index["weight_map"].values()):
        held = load_of(tmp_path / "several" / file).values()
        assert len(held) == 1 or sum(each.nbytes for each in held) <= max_bytes
    again = write([tmp_path / "several", pair[1]], tmp_path / "again", alpha=0.0)
    assert again.files == 1
    assert same(load(tmp_path / "again"), load(tmp_path / "one"))


def load_of(file: Path) -> Tensors:
    from safetensors.torch import load_file

    return load_file(file)


def test_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    tensors = tensors_of(0) | {"half": torch.ones(3, dtype=torch.bfloat16), "é": torch.tensor([True])}
    infos = {name: TensorInfo(tuple(each.shape), each.dtype) for name, each in tensors.items()}
    with ShardWriter(tmp_path / "ours", infos, tmp_path) as writer:
        for name in in_file_order(infos):
            writer.append(tensors[name])
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_without_values(tmp_path: Path) -> None:
    empty = {"none": torch.zeros(0, 3), "one": torch.ones(1, 1, 1)}
    write([save(tmp_path / "a", empty), save(tmp_path / "b", empty)], tmp_path / "out")
    assert same(load(tmp_path / "out"), empty)


def test_default_copies_leave_the_rest(pair: list[Path], tmp_path: Path) -> None:
    write(pair, tmp_path / "out", rules=Rules())
    tuned, out = load(pair[1]), load(tmp_path / "out")
    assert {name for name in tuned if torch.equal(tuned[name], out[name])} == {EMBEDDING, NORM, COUNTER}


def test_tied_tensors_are_one(tmp_path: Path) -> None:
    """The base has the head under its own name too, with the same values."""
    base = tensors_of(0)
    paths = [
        save(tmp_path / "a", base | {HEAD: base[EMBEDDING].clone()}),
        save(tmp_path / "b", tensors_of(1), tied=True),
    ]
    write(paths, tmp_path / "out")
    out = load(tmp_path / "out")
    assert HEAD not in out
    assert torch.equal(out[EMBEDDING], extrapolate(base[EMBEDDING], tensors_of(1)[EMBEDDING], 1.5))
    write(paths, tmp_path / "by_alias", rules=Rules(copies=("lm_head*",), default_copies=False))
    assert torch.equal(load(tmp_path / "by_alias")[EMBEDDING], tensors_of(1)[EMBEDDING])
    change(paths[0], **{HEAD: base[EMBEDDING] + 1})
    with pytest.raises(ExtrapolationError, match=r"lm_head.weight and model.embed_tokens.weight are tied in .*b but"):
        write(paths, tmp_path / "differs")


def test_tied_in_the_base_only(tmp_path: Path) -> None:
    tuned = tensors_of(1) | {HEAD: torch.randn(11, 6)}
    paths = [save(tmp_path / "a", tensors_of(0), tied=True), save(tmp_path / "b", tuned)]
    write(paths, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")[HEAD], extrapolate(tensors_of(0)[EMBEDDING], tuned[HEAD], 1.5))


def test_first_pattern_wins(pair: list[Path], tmp_path: Path) -> None:
    rules = Rules(copies=("*layers*",), alphas=(("*mlp*", 2.0), ("*layers.0*", 3.0), ("*embed*", 0.5)))
    write(pair, tmp_path / "out", rules=rules)
    base, tuned, out = load(pair[0]), load(pair[1]), load(tmp_path / "out")
    for name, alpha in ((MLP, 2.0), (ATTENTION, 3.0), (EMBEDDING, 0.5), ("model.scale", 1.5)):
        assert torch.equal(out[name], extrapolate(base[name], tuned[name], alpha)), name
    with pytest.raises(ExtrapolationError, match=r"pattern '\*mpl\*' matches none of the 6 tensors"):
        write(pair, tmp_path / "wrong", rules=Rules(copies=("*mpl*",)))


def test_timber_whole_tensors(pair: list[Path], tmp_path: Path) -> None:
    sources = Sources([PlainView(path) for path in pair])
    job = Job("timber", {"keep": 0.1}, sources, treatments(sources.tuned, ALL), None)
    write_checkpoint(job, tmp_path / "out", 10**9, {}, lambda _: None, print)
    base, tuned, out = load(pair[0]), load(pair[1]), load(tmp_path / "out")
    assert torch.equal(out[MLP], timber(base[MLP], tuned[MLP], 0.1))
    assert torch.equal(out[NORM], tuned[NORM])


def test_line_fit_copies_what_fits_poorly(tmp_path: Path) -> None:
    steps, start, moves = [10, 20, 40], tensors_of(0), tensors_of(1)
    models = [{name: start[name] + step * moves[name] for name in start} for step in steps]
    models[1][MLP] = torch.randn(10, 6) * 100
    sources = Sources([PlainView(save(tmp_path / f"{n}", model)) for n, model in enumerate(models)])
    chosen, fits = gated(sources, treatments(sources.tuned, ALL), steps, 0.9, lambda _: None)
    assert chosen[MLP].group == POOR_FIT
    assert fits.keys() == set(start) - {COUNTER}
    assert all(fit == pytest.approx(1.0) for name, fit in fits.items() if name != MLP)
    job = Job("line_fit", {"steps": steps, "at": 60}, sources, chosen, None)
    write_checkpoint(job, tmp_path / "out", 10**9, {}, lambda _: None, print)
    out = load(tmp_path / "out")
    assert torch.equal(out[MLP], models[2][MLP])
    assert torch.allclose(out[ATTENTION], start[ATTENTION] + 60 * moves[ATTENTION], atol=1e-4)


def test_sharded_checkpoints_take_the_files_of_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [save(tmp_path / f"checkpoint-{step}", tensors_of(step), step) for step in (1, 2)]
    for file in (file for path in paths for file in path.iterdir() if file.suffix == ".json"):
        file.unlink()
    write(paths, tmp_path / "without")
    assert "no config.json lies beside" in capsys.readouterr().out
    save(tmp_path / "policy", tensors_of(2))
    write(paths, tmp_path / "out")
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out/config.json").read_text())["of"] == "policy"
    assert (tmp_path / "out/tokenizer.json").read_text() == "policy"


def test_provenance_and_side_files(pair: list[Path], tmp_path: Path) -> None:
    (pair[0] / "chat_template.jinja").write_text("not the tuned model's")
    (pair[1] / "config.json").unlink()
    write(pair, tmp_path / "out", rules=Rules())
    facts = json.loads((tmp_path / "out/provenance.json").read_text())
    assert [each["step"] for each in facts["sources"]] == [0, 100]
    assert {each["group"]: each["tensors"] for each in facts["groups"]} == {
        "embeddings": 1,
        "integers": 1,
        "norms": 1,
        "rest": 3,
    }
    assert facts["side_files"] == {"model": str(pair[0]), "tokenizer": str(pair[1])}
    assert (tmp_path / "out/tokenizer.json").read_text() == "tuned"
    assert not (tmp_path / "out/chat_template.jinja").exists()
    before = [each["fingerprint"] for each in facts["sources"]]
    (pair[1] / "tokenizer.json").write_text("tuned anew")
    write(pair, tmp_path / "later")
    later = json.loads((tmp_path / "later/provenance.json").read_text())
    assert [each["fingerprint"] == old for each, old in zip(later["sources"], before, strict=True)] == [True, False]
