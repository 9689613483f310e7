"""Where a process is in its run."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """What a process does since when."""

    step: int  # optimiser steps that are done
    stage: str
    since: float  # seconds of time.perf_counter


class Progress:
    """Told by the thread that trains, read by the watchdog's. Every call is progress, the same stage once more too."""

    def __init__(self) -> None:
        self.place = Place(0, "start", time.perf_counter())

    def enter(self, stage: str, step: int | None = None) -> float:
        """Returns when, in seconds of time.perf_counter; the step stays what it was unless it is given."""
        now = time.perf_counter()
        self.place = Place(self.place.step if step is None else step, stage, now)
        return now
