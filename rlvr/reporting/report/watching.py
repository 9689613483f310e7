"""Builds the report anew while a run goes on."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlvr.reporting.report.building import build_report
from rlvr.reporting.report.records import Run

POLL_S = 2.0
LONGEST_SHARE = 0.2  # of the time that may go into building


def watch(
    folders: Sequence[Path],
    output: Path,
    tell: Callable[[Sequence[Run], float], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Builds the page whenever what it shows has grown, until every run is finished.

    `tell` gets the runs and the seconds that a build took.
    """
    seen: tuple[tuple[str, int, int], ...] | None = None
    while True:
        now = _state(folders)
        if now != seen:
            started = time.perf_counter()
            runs = build_report(folders, output, is_live=True)
            took = time.perf_counter() - started
            tell(runs, took)
            if all(run.is_finished for run in runs):
                return
            seen = now
            sleep(max(POLL_S, took / LONGEST_SHARE))
        else:
            sleep(POLL_S)


def _state(folders: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of the files by which a run grows."""
    return tuple(
        (str(path), stat.st_size, stat.st_mtime_ns)
        for folder in folders
        for path in _growing(folder)
        for stat in (path.stat(),)
    )


def _growing(folder: Path) -> Iterator[Path]:
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        yield metrics
    yield from sorted((folder / "evaluations").glob("*.json"))
