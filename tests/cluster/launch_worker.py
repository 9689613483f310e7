"""Launches itself by `launch` of scripts/launch.py; launched, it stands in for a training process."""

import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FOLDER"])


def meet(name: str, processes: int) -> None:
    """Waits until all processes are here."""
    (FOLDER / f"{name}-{os.environ.get('RANK', '0')}").touch()
    while len(list(FOLDER.glob(f"{name}-*"))) < processes:
        time.sleep(0.01)


def work(processes: int) -> int:
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    meet("ready", processes)
    if os.environ.get("RANK", "0") == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    deadline = time.monotonic() + 20
    while not told:
        if time.monotonic() > deadline:
            return 3
        time.sleep(0.01)
    meet("saved", processes)
    return 75


if __name__ == "__main__":
    number, then = sys.argv[1:]
    if os.environ.get("LAUNCHED"):
        sys.exit(work(int(number)) if then == "save" else 2)
    os.environ["LAUNCHED"] = "1"
    from scripts.launch import launch

    config = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu2.yaml"
    arguments = ["--config_file", str(config), "--num_processes", number, "--main_process_port", "0"]
    if number == "1":
        arguments = ["--cpu", "--num_processes", "1", "--num_machines", "1"]
    sys.exit(launch([*arguments, __file__, *sys.argv[1:]]))
