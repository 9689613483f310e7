"""The watch section: defaults, and the one line that every mistake gets."""

from pathlib import Path

import pytest

from rlvr.config import resolved_yaml
from rlvr.config.watch import WatchConfig
from tests.unit.config_text import QUICKSTART, error_of, load

SKIP = "watch.on_nonfinite=skip"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_are_written_out() -> None:
    loaded = load(QUICKSTART)
    assert loaded.recipe.watch == WatchConfig(
        heartbeat_s=10.0, stall_minutes=30.0, on_stall="report", on_nonfinite="stop", max_skipped=10
    )
    assert load(resolved_yaml(loaded)).recipe.watch == loaded.recipe.watch


def test_every_key_can_be_set() -> None:
    loaded = load(
        QUICKSTART,
        "watch={heartbeat_s: 2, stall_minutes: null, on_nonfinite: skip, max_skipped: 3}",
        "trainer.optim=sgd",
    )
    assert loaded.recipe.watch == WatchConfig(heartbeat_s=2, stall_minutes=None, on_nonfinite="skip", max_skipped=3)
    assert load(resolved_yaml(loaded)).recipe.watch == loaded.recipe.watch
    assert load(QUICKSTART, "watch.on_stall=abort").recipe.watch.on_stall == "abort"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["watch.heartbeat=5"], "heartbeat: unknown key; did you mean 'heartbeat_s'?"),
        (["watch.heartbeat_s=0"], "heartbeat_s: 0 is not valid; it must be greater than 0"),
        (["watch.stall_minutes=0"], "stall_minutes: 0 is not valid; it must be greater than 0"),
        (
            ["watch.stall_minutes=0.1"],
            "stall_minutes: 0.1 minutes are shorter than heartbeat_s=10 seconds, by which progress is looked at; make"
            " heartbeat_s smaller",
        ),
        (["watch.on_stall=kill"], "on_stall: 'kill' is not valid; it must be 'report' or 'abort'"),
        (
            ["watch={stall_minutes: null, on_stall: abort}"],
            "on_stall: 'abort' has no effect without stall_minutes; set stall_minutes, or remove it",
        ),
        (["watch.on_nonfinite=ignore"], "on_nonfinite: 'ignore' is not valid; it must be 'stop' or 'skip'"),
        ([SKIP, "watch.max_skipped=0"], "max_skipped: 0 is not valid; it must be at least 1"),
        (["watch.max_skipped=3"], "max_skipped: has no effect, as on_nonfinite 'stop' skips no step; set it to 'skip'"),
        ([SKIP, "trainer.fp16=true"], "on_nonfinite: 'skip' is not for trainer.fp16, whose loss scaler"),
        (
            [SKIP, "trainer.optim=adafactor"],
            "on_nonfinite: 'skip' is not known to leave the state of trainer.optim 'adafactor' alone; use one of"
            " adamw_torch, adamw_torch_fused, sgd, or set it to 'stop'",
        ),
    ],
)
def test_mistakes_are_named_with_a_remedy(overrides: list[str], message: str) -> None:
    error = error_of(QUICKSTART, *overrides)
    assert error.startswith(f"r.yaml: watch.{message}")
