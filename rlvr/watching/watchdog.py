"""A thread beside the one that trains: it writes the heartbeat, and stacks when nothing moves any more."""

import faulthandler
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import Logger
from pathlib import Path
from typing import Any, TextIO

from rlvr.config.watch import WatchConfig
from rlvr.errors import RunAborted
from rlvr.watching.progress import Place, Progress

HEARTBEAT, LOG, STALL = "heartbeat.json", "log.txt", "stall.json"


@dataclass(frozen=True)
class Rank:
    """One process of a run, and what it writes into."""

    index: int
    count: int
    folder: Path  # its own
    file: TextIO  # the log in it
    log: Logger  # writes there and nowhere else


class Watchdog(threading.Thread):
    """Looks every `heartbeat_s` seconds.

    After `stall_minutes` without progress it writes the stacks of all threads, and again each time as long has passed.
    The process that stalls first says so in a file beside the folders of all, on which the others write theirs.
    With `on_stall: abort` it ends its process once they have had the time to, for the launcher to end the run.
    """

    def __init__(self, config: WatchConfig, progress: Progress, rank: Rank) -> None:
        super().__init__(name="rlvr-watchdog", daemon=True)
        self.config, self.progress, self.rank = config, progress, rank
        self._stall_s = math.inf if config.stall_minutes is None else 60.0 * config.stall_minutes
        self._reported_at = -math.inf  # by the clock of Place.since
        self._has_complained = False
        self._ended = threading.Event()
        self._alarm = rank.folder.parent / STALL
        self._known_alarm = _changed_at(self._alarm)  # one of an earlier part of the run says nothing of this one

    def run(self) -> None:
        while True:
            self._rearm()
            self._look()
            if self._ended.wait(self.config.heartbeat_s):
                return

    def end(self, status: str) -> None:
        """Stops the thread and writes `status` into the last heartbeat."""
        self._ended.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()
        self._beat(status)

    def _rearm(self) -> None:
        """Covers what stops this thread as well, a native call that keeps Python's lock: a timer without Python, which
        goes off unless it is set anew in time.
        """
        if self._stall_s < math.inf:
            faulthandler.dump_traceback_later(
                self._stall_s + 3 * self.config.heartbeat_s,
                repeat=True,
                file=self.rank.file,
                exit=self.config.on_stall == "abort",
            )

    def _look(self) -> None:
        place, now = self.progress.place, time.perf_counter()
        is_late = now - place.since > self._stall_s
        self._beat("stalled" if is_late else "running")
        if is_late and now - self._reported_at > self._stall_s:
            self._reported_at = now
            self._report(place, now)
        elif (changed_at := _changed_at(self._alarm)) != self._known_alarm:
            self._known_alarm = changed_at
            self._write_stacks(f"rank {self.rank.index} is in {_words(place, now)}; see ../{STALL} for another's stall")

    def _report(self, place: Place, now: float) -> None:
        sentence = f"rank {self.rank.index} has made no progress in {_words(place, now)}"
        _say(f"{sentence}; the stacks of its threads are in {self.rank.folder}")
        self._write_stacks(sentence)
        if _changed_at(self._alarm) == self._known_alarm:  # or else another was first
            self._write(
                self._alarm, {"rank": self.rank.index, "step": place.step, "stage": place.stage, "time": _utc()}
            )
        self._known_alarm = _changed_at(self._alarm)
        if self.config.on_stall == "abort":
            has_ended = self._ended.wait(2 * self.config.heartbeat_s)  # the others look within one
            if not has_ended and self.progress.place is place:
                _say(f"rank {self.rank.index} ends, as watch.on_stall is 'abort'")
                self._beat("stopped")
                os._exit(RunAborted.exit_code)  # no exception reaches a thread that hangs in a native call

    def _write_stacks(self, sentence: str) -> None:
        path = self.rank.folder / f"stacks-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.txt"
        with self._persisting(), path.open("a") as file:
            file.write(f"{sentence}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self.rank.log.warning("%s; stacks in %s", sentence, path.name)

    def _beat(self, status: str) -> None:
        place, now = self.progress.place, time.perf_counter()
        record = {
            "rank": self.rank.index,
            "num_processes": self.rank.count,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "status": status,
            "step": place.step,
            "stage": place.stage,
            "stage_s": round(now - place.since, 1),
            "time": _utc(),
        }
        self._write(self.rank.folder / HEARTBEAT, record)

    def _write(self, path: Path, record: Mapping[str, Any]) -> None:
        """In place of what is there, at once: whoever reads finds the old record or the new one."""
        partial = path.with_name(f".{path.name}.partial")
        with self._persisting():
            partial.write_text(json.dumps(record) + "\n")
            partial.replace(path)

    @contextmanager
    def _persisting(self) -> Iterator[None]:
        """A full disk ends neither the thread nor the run, nor does it keep a stall from ending the run."""
        try:
            yield
        except OSError as error:
            if not self._has_complained:
                _say(f"rank {self.rank.index}: the watchdog cannot write: {error}")
            self._has_complained = True


def _words(place: Place, now: float) -> str:
    return f"{place.stage!r} after step {place.step} for {(now - place.since) / 60:.1f} minutes"


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _changed_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may be listening any more
        sys.stderr.write(f"{text}\n")
