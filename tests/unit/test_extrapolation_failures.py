"""What is refused, by name, and what is left of a checkpoint that was not finished: nothing."""

import fcntl
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.output_folder import new_folder
from rlvr.extrapolation.rules import Rules
from tests.unit.extrapolation_cases import COUNTER, EMBEDDING, MLP, NORM, load, save, tensors_of
from tests.unit.test_extrapolation_writing import change, write

SCRIPT = [sys.executable, "-m", "tests.unit.extrapolation_script"]


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [save(tmp_path / "base", tensors_of(0)), save(tmp_path / "tuned", tensors_of(1))]


def refused(pair: list[Path], out: Path, words: str, **arguments: Any) -> None:
    """One sentence on one line, and no trace of an output."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(ExtrapolationError, match=words) as caught:
        write(pair, out, **arguments)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


def test_tensors_that_do_not_fit_are_named(pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    change(pair[0], **{MLP: None})
    refused(pair, out, rf"base lacks 1 tensor that .*tuned has \({MLP}\)")
    change(pair[0], **{MLP: torch.zeros(9, 6)})
    refused(pair, out, rf"base has 1 tensor in another form than .*tuned \({MLP} \[9, 6\] for \[10, 6\]\)")
    change(pair[0], **{MLP: torch.zeros(10, 6, dtype=torch.int32)})
    refused(pair, out, rf"\({MLP} int32 for float32\)")
    change(pair[0], **{MLP: torch.zeros(10, 6)}, **{f"extra.{n}": torch.zeros(1) for n in range(7)})
    refused(pair, out, r"base has 7 tensors that .*tuned lacks \(extra.0, extra.1, extra.2, extra.3, extra.4, \.\.\.\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["base", "tuned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_that_are_not_finite_are_named(tmp_path: Path, which: str, value: float, dtype: torch.dtype) -> None:
    models = {"base": tensors_of(0, dtype), "tuned": tensors_of(1, dtype)}
    models[which][MLP][9, 5] = value
    paths = [save(tmp_path / name, model) for name, model in models.items()]
    refused(paths, tmp_path / "out", rf"{MLP} of .*{which} has values that are NaN or infinite", max_bytes=300)
    copied = Rules(copies=("*mlp*",), default_copies=False)
    if which == "tuned":
        refused(paths, tmp_path / "out", f"{MLP} of .*tuned has", rules=copied)
    else:  # it is not read
        write(paths, tmp_path / "out", rules=copied)


def test_result_out_of_range_is_named(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}", tensors_of(n, torch.float16)) for n in (0, 1)]
    refused(paths, tmp_path / "out", f"{EMBEDDING} leaves the range of float16; .*float32", alpha=1e6)
    write(paths, tmp_path / "out", alpha=1e6, dtype=torch.float32)


def test_large_values_are_finite(tmp_path: Path) -> None:
    """Their sum is not."""
    large = {MLP: torch.full((10, 6), 3e38), EMBEDDING: torch.zeros(11, 6)}
    paths = [save(tmp_path / f"{n}", large) for n in (0, 1)]
    write(paths, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")[MLP], large[MLP])


def test_quantised_tensors_are_only_copied(pair: list[Path], tmp_path: Path) -> None:
    for path in pair:
        change(path, **{MLP: torch.zeros(10, 6).to(torch.float8_e4m3fn)})
    refused(pair, tmp_path / "out", f"{MLP} of .*base is stored as float8_e4m3fn, with which one cannot calculate")
    write(pair, tmp_path / "out", rules=Rules(copies=("*mlp*",)))
    assert load(tmp_path / "out")[MLP].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_an_output_that_exists_is_refused(pair: list[Path], tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "dangling link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "mine").write_text("mine")
    refused(pair, out, "out exists already")


def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with new_folder(out, 1, print) as folder:
            (folder / "model.safetensors").write_text("new")
            out.mkdir()

    with pytest.raises(ExtrapolationError, match="out exists already"):
        race()
    assert list(out.iterdir()) == []
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_is_too_small_is_known_before(tmp_path: Path) -> None:
    with (
        pytest.raises(ExtrapolationError, match=r"needs 1000000.00 GB and its disk has"),
        new_folder(tmp_path / "out", 10**15, print),
    ):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing_leaves_nothing_that_loads(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, hidden = tmp_path / "out", tmp_path / ".out.rlvr-partial"
    with subprocess.Popen([*SCRIPT, *map(str, pair), str(out), "0.2"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        with pytest.raises(ExtrapolationError, match=r"Another process is writing .*out"):
            write(pair, out)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert list(hidden.glob("model-00001-of-*.safetensors"))
    assert not (hidden / "config.json").exists()
    write(pair, out)
    assert f"removed {hidden}, which a killed run had left" in capsys.readouterr().out.replace("\n", "")
    assert not hidden.exists()
    assert COUNTER in load(out)
    hidden.mkdir()
    write(pair, tmp_path / "another")
    assert f"{hidden} was left by a killed run" in capsys.readouterr().out.replace("\n", "")
    assert hidden.exists()


def test_a_full_disk_leaves_nothing(pair: list[Path], tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the middle of a file."""
    with pytest.raises(
        ExtrapolationError, match="out could not be written, because its disk or quota is full"
    ) as caught:
        limited(lambda: write(pair, tmp_path / "out"), 1200)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def limited(call: Any, num_bytes: int) -> None:
    """Calls it while no file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_written_is_named(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExtrapolationError, match=r"file/out could not be written \(File exists\)"):
        write(pair, tmp_path / "file/out")


def test_lock_goes_with_the_process(pair: list[Path], tmp_path: Path) -> None:
    hidden = tmp_path / ".out.rlvr-partial"
    hidden.mkdir()
    lock = os.open(hidden, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(pair, tmp_path / "out", "Another process is writing")
    os.close(lock)
    write(pair, tmp_path / "out")


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        save_file({}, tmp_path / name / "model.safetensors")
    refused([tmp_path / "base", tmp_path / "tuned"], tmp_path / "out", "no tensors")


def test_norms_by_case(tmp_path: Path) -> None:
    tensors = {"h.LN_1.Weight": torch.ones(3), "RMSNorm": torch.ones(3), "attn_q": torch.ones(3), "wte": torch.ones(3)}
    moved = {name: 2 * each for name, each in tensors.items()}
    write([save(tmp_path / "a", tensors), save(tmp_path / "b", moved)], tmp_path / "out", rules=Rules(), alpha=2.0)
    out = load(tmp_path / "out")
    assert {name: float(each[0]) for name, each in out.items()} == {
        "h.LN_1.Weight": 2.0,
        "RMSNorm": 2.0,
        "attn_q": 3.0,
        "wte": 2.0,
    }
    assert NORM not in out
