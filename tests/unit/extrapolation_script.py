"""Writes the middle of two checkpoints: python -m tests.unit.extrapolation_script BASE TUNED OUT [SECONDS per block].

It says `started` once the first block is in the file.
"""

import sys
import time
from pathlib import Path

from rlvr.extrapolation import sources
from rlvr.extrapolation.rules import Rules, treatments
from rlvr.extrapolation.writing import Job, write_checkpoint
from tests.unit.extrapolation_cases import PlainView


def main(base: str, tuned: str, out: str, pause: str = "0") -> None:
    sources.BLOCK_VALUES = 20

    def advance(values: int) -> None:
        print("started", flush=True)  # noqa: T201
        time.sleep(float(pause))

    opened = sources.Sources([PlainView(Path(base)), PlainView(Path(tuned))])
    job = Job("extrapolate", {"alpha": 0.5}, opened, treatments(opened.tuned, Rules(default_copies=False)), None)
    write_checkpoint(job, Path(out), 300, {}, advance, print)


if __name__ == "__main__":
    main(*sys.argv[1:])
