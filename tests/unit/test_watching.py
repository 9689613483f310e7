"""Heartbeat, stalls and the log of one process."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlvr.config.watch import WatchConfig
from rlvr.errors import RunAborted
from rlvr.watching.logs import alone, logging_to
from rlvr.watching.progress import Place, Progress
from rlvr.watching.running import watched
from rlvr.watching.watchdog import Rank, Watchdog
from tests.conftest import ROOT, MakeTrainer, vowel_reward

ONE_BATCH = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}


def heartbeat(run: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"ranks/rank-{rank}/heartbeat.json").read_text())
    return found


def stacks(run: Path, rank: int = 0) -> list[str]:
    return [path.read_text() for path in sorted((run / f"ranks/rank-{rank}").glob("stacks-*.txt"))]


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- the watchdog, looked through by hand ---------------------------------------------------------------------------

MakeDog = Callable[..., Watchdog]


@pytest.fixture
def make_dog(tmp_path: Path) -> Iterator[MakeDog]:
    """Watchdogs of several ranks whose threads are not started."""
    files = []

    def make(rank: int = 0, **settings: Any) -> Watchdog:
        folder = tmp_path / "ranks" / f"rank-{rank}"
        folder.mkdir(parents=True)
        files.append((folder / "log.txt").open("a"))
        return Watchdog(
            WatchConfig.model_validate(settings),
            Progress(),
            Rank(rank, 2, folder, files[-1], alone("rlvr", logging.NullHandler())),
        )

    yield make
    for file in files:
        file.close()


def be_late(dog: Watchdog, minutes: float) -> None:
    dog.progress.place = Place(3, "rollout", time.perf_counter() - 60.0 * minutes)


def test_a_stall_is_reported_once_per_limit_and_progress_ends_it(
    make_dog: MakeDog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog = make_dog(stall_minutes=5)
    be_late(dog, 4.9)
    dog._look()
    assert (stacks(tmp_path), heartbeat(tmp_path)["status"]) == ([], "running")
    be_late(dog, 5.1)
    dog._look()
    (text,) = stacks(tmp_path)
    assert text.startswith("rank 0 has made no progress in 'rollout' after step 3 for 5.1 minutes\n")
    assert "in be_late" not in text
    assert "in test_a_stall_is_reported_once_per_limit_and_progress_ends_it" in text
    found = heartbeat(tmp_path)
    assert (found["status"], found["step"], found["stage"]) == ("stalled", 3, "rollout")
    assert found["stage_s"] == pytest.approx(306, abs=5)
    assert f"for 5.1 minutes; the stacks of its threads are in {tmp_path}/ranks/rank-0\n" in capsys.readouterr().err
    assert json.loads((tmp_path / "ranks/stall.json").read_text()).keys() == {"rank", "step", "stage", "time"}
    dog._look()
    assert len(stacks(tmp_path)) == 1
    assert text == stacks(tmp_path)[0]
    dog._reported_at -= 301.0
    dog._look()
    assert sum(text.count("no progress") for text in stacks(tmp_path)) == 2
    dog.progress.enter("rollout")
    dog._look()
    assert sum(text.count("no progress") for text in stacks(tmp_path)) == 2
    assert heartbeat(tmp_path)["status"] == "running"
    assert heartbeat(tmp_path)["step"] == 3


def test_without_a_limit_nothing_is_a_stall(make_dog: MakeDog, tmp_path: Path) -> None:
    dog = make_dog(stall_minutes=None)
    be_late(dog, 1e6)
    dog._look()
    assert stacks(tmp_path) == []
    assert heartbeat(tmp_path)["status"] == "running"


def test_one_stall_brings_the_stacks_of_all(make_dog: MakeDog, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks/stall.json").write_text("of an earlier part of the run")
    dogs = [make_dog(rank, stall_minutes=5) for rank in range(2)]
    for dog in dogs:
        dog._look()
    assert [stacks(tmp_path, rank) for rank in range(2)] == [[], []]
    be_late(dogs[1], 6)
    dogs[1]._look()
    for _ in range(3):
        dogs[0]._look()
        dogs[1]._look()
    (mine,), (others,) = stacks(tmp_path, 1), stacks(tmp_path, 0)
    assert mine.count("no progress in 'rollout'") == others.count("rank 0 is in 'start'") == 1
    assert "thread 0x" in others
    assert heartbeat(tmp_path, 0)["status"] == "running"


def test_what_cannot_be_written_is_said_once_and_ends_nothing(
    make_dog: MakeDog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dog = make_dog(heartbeat_s=0.01)
    folder = tmp_path / "ranks/rank-0"
    folder.rename(tmp_path / "away")
    dog.start()
    wait_for(lambda: dog._has_complained)
    (tmp_path / "away").rename(folder)
    wait_for((folder / "heartbeat.json").exists)
    folder.rename(tmp_path / "away")
    dog.end("finished")
    assert capsys.readouterr().err.count("rank 0: the watchdog cannot write: ") == 1


def test_a_monitor_never_reads_half_a_heartbeat(make_dog: MakeDog, tmp_path: Path) -> None:
    dog = make_dog(heartbeat_s=1e-4)
    dog.start()
    file = tmp_path / "ranks/rank-0/heartbeat.json"
    wait_for(file.exists)
    found = {json.loads(file.read_text())["status"] for _ in range(3000)}
    dog.end("finished")
    assert found == {"running"}
    assert heartbeat(tmp_path)["status"] == "finished"
    assert [path.name for path in file.parent.iterdir()].count("heartbeat.json") == 1
    assert not list(file.parent.glob(".*"))


# A process that hangs in a native call, without Python's lock or with it.
HANG = """
import ctypes, logging, sys, time
from pathlib import Path
from rlvr.config.watch import WatchConfig
from rlvr.watching.progress import Progress
from rlvr.watching.watchdog import Rank, Watchdog
folder = Path(sys.argv[1])
file = (folder / "log.txt").open("a")
if sys.argv[2] == "nothing_can_be_written":
    folder.rename(folder.with_name("away"))
config = WatchConfig(heartbeat_s=0.3, stall_minutes=1 / 60, on_stall="abort")
Watchdog(config, Progress(), Rank(0, 1, folder, file, logging.Logger("quiet"))).start()
def hang():
    ctypes.PyDLL(None).sleep(60) if sys.argv[2] == "with_lock" else time.sleep(60)
hang()
"""


@pytest.mark.parametrize("way", ["without_lock", "with_lock", "nothing_can_be_written"])
def test_abort_ends_a_process_that_hangs_in_a_native_call(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "ranks/rank-0"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HANG, str(folder), way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == RunAborted.exit_code, done.stderr
    if way == "with_lock":
        text = (folder / "log.txt").read_text()
        assert "Timeout" in text
        assert "in hang\n" in text
        return
    assert "rank 0 ends, as watch.on_stall is 'abort'" in done.stderr
    if way == "without_lock":
        assert "in hang\n" in stacks(tmp_path)[0]
        assert heartbeat(tmp_path)["status"] == "stopped"
        assert (folder / "log.txt").read_text() == ""  # the timer outside of Python was not needed
    else:
        assert "rank 0: the watchdog cannot write: " in done.stderr


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_a_reward_that_hangs_is_found_and_the_run_goes_on(
    make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def hanging_reward(completions: list[str], **_: Any) -> list[float]:
        if trainer.state.global_step == 1:
            wait_for(lambda: "in hanging_reward\n" in "".join(stacks(tmp_path)))
            seen.update(heartbeat(tmp_path))
        return vowel_reward(completions)

    trainer = make_trainer(reward=hanging_reward, **ONE_BATCH)
    config = WatchConfig(heartbeat_s=0.02, stall_minutes=1 / 60)
    with watched(config, tmp_path, trainer.watch.progress):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "no progress in 'verify' after step 1" in "".join(stacks(tmp_path))
    assert (seen["status"], seen["step"], seen["stage"]) == ("stalled", 1, "verify")
    assert (seen["rank"], seen["num_processes"], seen["pid"]) == (0, 1, os.getpid())
    assert "no progress in 'verify' after step 1" in capsys.readouterr().err
    last = heartbeat(tmp_path)
    assert (last["status"], last["step"], last["stage"]) == ("finished", 2, "end of training")
    assert not any(thread.name == "rlvr-watchdog" for thread in threading.enumerate())


def test_stages_are_reported_as_they_begin(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(num_iterations=2, max_steps=2, save_strategy="steps", save_steps=2, **ONE_BATCH)
    entered: list[tuple[str, int]] = []
    original = trainer.watch.progress.enter

    def noted(stage: str, step: int | None = None) -> float:
        at = original(stage, step)
        entered.append((stage, trainer.watch.progress.place.step))
        return at

    trainer.watch.progress.enter = noted  # type: ignore[method-assign]
    trainer.train()
    first = ["step", "rollout", "verify", "old_logprobs", "loss", "optimizer"]
    assert entered == [
        ("beginning of training", 0),
        *((stage, 0) for stage in first),
        *((stage, 1) for stage in ("end of step", "step", "loss", "optimizer")),
        *((stage, 2) for stage in ("end of step", "saved", "end of training")),
    ]


def test_signal_and_exception_are_in_the_log(tmp_path: Path) -> None:
    def fails() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"), watched(WatchConfig(), tmp_path, Progress()):
        fails()
    text = (tmp_path / "ranks/rank-0/log.txt").read_text()
    assert f"process 0 of 1, pid {os.getpid()} on " in text
    before, after = text.split("ended at step 0 in 'start'\nTraceback")
    assert "in fails\n" in before  # as faulthandler writes it
    assert "in fails\n" in after
    assert text.endswith("ValueError: not today\n")
    assert heartbeat(tmp_path)["status"] == "stopped"
    with watched(WatchConfig(), tmp_path, Progress()):
        pass
    assert (tmp_path / "ranks/rank-0/log.txt").read_text().startswith(text)  # a resumed run appends
    assert heartbeat(tmp_path)["status"] == "finished"


# ---- logs -----------------------------------------------------------------------------------------------------------


def test_logging_and_warnings_are_in_the_file_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = logging.getLogger("transformers")  # commands in this process may have made it quieter
    before_level = transformers.level
    transformers.setLevel(logging.WARNING)
    try:
        check_logging(tmp_path)
    finally:
        transformers.setLevel(before_level)


def check_logging(tmp_path: Path) -> None:
    root, before = logging.getLogger(), warnings.showwarning
    handlers = list(root.handlers)
    with (tmp_path / "log.txt").open("a") as file:
        with logging_to(file) as own:
            logging.getLogger("trl.something").warning("from trl")
            logging.getLogger("transformers.trainer").warning("from transformers")
            logging.getLogger("vllm").warning("from vllm, which is open as long as vllm is not imported")
            with pytest.warns(UserWarning, match="own"):
                warnings.warn("own", UserWarning, stacklevel=1)  # recorded by pytest, as any catch_warnings does
            own.info("for the file alone")
        logging.getLogger("trl.something").warning("too late")
    text = (tmp_path / "log.txt").read_text()
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == [
        "WARNING trl.something: from trl",
        "WARNING transformers.trainer: from transformers",
        "WARNING vllm: from vllm, which is open as long as vllm is not imported",
        "INFO rlvr: for the file alone",
    ]
    assert (root.handlers, warnings.showwarning) == (handlers, before)


SPEAK = """
import logging, sys, warnings
from contextlib import nullcontext
from rlvr.watching.logs import alone, logging_to
closed, open_ = logging.getLogger("transformers"), logging.getLogger("noisy")
for each in (closed, open_):
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"[{each.name}] %(message)s"))
    each.addHandler(handler)
closed.propagate = False
with logging_to(open(sys.argv[1], "a")) if len(sys.argv) > 1 else nullcontext():
    logging.getLogger("transformers.trainer").warning("one")
    logging.getLogger("noisy.part").warning("two")
    logging.getLogger("plain").warning("three")
    logging.getLogger("plain").info("four")
    warnings.warn("five")
    logging.getLogger("plain").error("six")
logging.getLogger("plain").error("seven")
"""


def test_the_terminal_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    shown = [
        subprocess.run(
            [sys.executable, "-c", SPEAK, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stderr
        for arguments in ([], [str(log)])
    ]
    assert shown[0] == shown[1]
    assert all(shown[0].count(word) == 1 for word in ("one", "two", "three", "five", "six", "seven"))
    counts = {word: log.read_text().count(word) for word in ("one", "two", "three", "four", "five", "six", "seven")}
    assert counts == {"one": 1, "two": 1, "three": 1, "four": 0, "five": 1, "six": 1, "seven": 0}
