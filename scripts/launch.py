"""`accelerate launch` of scripts/train.py for jobs that may be preempted. Run it once on each machine of a job.

    python scripts/launch.py --config recipes/accelerate/zero3.yaml --processes 8 RECIPE RUN_DIR [key=value ...]

What it adds to `accelerate launch`:
- A run that RUN_DIR already holds is resumed; otherwise it is started.
- SIGTERM goes to the training processes, which save and stop, and nothing hurries them. The launcher of torch would
  kill them 30 seconds later, in the middle of a long step.
- It ends with the exit status of the training processes, where the launcher of torch ends with 1: 0 done, 75 saved
  after SIGTERM, start the same command again; 2 a mistake in the recipe; 1 failed; 128 + n killed by signal n.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from types import FrameType

import psutil

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h
TRAIN = Path(__file__).with_name("train.py")


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    return launch([*accelerate_arguments(options), str(TRAIN), *training_arguments(options)])


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description="Starts or resumes a run on this machine of a job.")
    arguments.add_argument("--config", required=True, help="a file of recipes/accelerate")
    arguments.add_argument("--processes", type=int, required=True, help="on this machine, as many as it has GPUs")
    arguments.add_argument("--machines", type=int, default=1)
    arguments.add_argument("--rank", type=int, default=0, help="the number of this machine, from 0")
    arguments.add_argument("--main-address", default="127.0.0.1", help="host name of machine 0")
    arguments.add_argument("--port", type=int, default=29500, help="a free one on machine 0")
    arguments.add_argument("recipe")
    arguments.add_argument("run_dir", type=Path)
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    return arguments


def accelerate_arguments(options: argparse.Namespace) -> list[str]:
    """How many processes there are and where they meet; the number in the config file is overridden."""
    return [
        *("--config_file", options.config),
        *("--num_machines", str(options.machines)),
        *("--machine_rank", str(options.rank)),
        *("--num_processes", str(options.machines * options.processes)),
        *("--main_process_ip", options.main_address),
        *("--main_process_port", str(options.port)),
        *("--deepspeed_multinode_launcher", "standard"),  # this script runs on each machine, no need for ssh
    ]


def training_arguments(options: argparse.Namespace) -> list[str]:
    resume = ["--resume"] if (options.run_dir / "recipe.yaml").exists() else []
    return [options.recipe, f"trainer.output_dir={options.run_dir}", *options.overrides, *resume]


def launch(arguments: Sequence[str]) -> int:
    """Runs `accelerate launch` with these arguments; returns the exit status of the processes that it started."""
    terminated = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        processes = psutil.Process().children()
        if not processes:
            sys.exit(RESUMABLE)  # nothing has begun
        for process in processes:
            process.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)  # before the imports below, which take seconds
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = launch_command_parser().parse_args(arguments)
    options.signals_to_handle = "SIGINT,SIGHUP,SIGQUIT"  # by the launcher of torch
    try:
        launch_command(options)
    except ChildFailedError as error:
        return exit_status([failure.exitcode for failure in error.failures.values()], terminated)
    except subprocess.CalledProcessError as error:  # of a single process
        return exit_status([error.returncode], terminated)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def exit_status(statuses: Collection[int], terminated: bool) -> int:
    """One for all processes that failed, -n standing for killed by signal n.

    One that SIGTERM killed did so before it could save or after its last checkpoint, which is resumable as well. When
    one fails, the launcher of torch ends the others by signals, so what a process chose itself says more.
    """
    if RESUMABLE in statuses or (terminated and -signal.SIGTERM in statuses):
        return RESUMABLE
    own = [status for status in statuses if status > 0]
    return max(own) if own else 128 - min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
