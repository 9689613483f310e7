"""Runs scripts as forks of one process that has imported what they need, which takes 5 seconds of each otherwise.

The processes are real ones with the environment that the accelerate launcher would give them. One such parent serves
all launches of a test process and ends with it.
"""

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

TIMEOUT_S = 300.0
PLAIN = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
LAUNCH_ENVIRONMENT = ROOT / "tests" / "distributed" / "launch_environment.py"
PROGRAM = "from tests.distributed.forking import serve; serve()"


def run_forked(
    arguments: Sequence[str],
    processes: int,
    cwd: Path,
    config: Path,
    options: Sequence[str],
    variables: Mapping[str, str],
) -> tuple[int, str]:
    """Exit status and output of a script in this many processes; the first failure ends the others."""
    environments: list[dict[str, str]] = [dict(variables)]
    if processes > 1:
        common = {**launched_environment(config, tuple(options), cwd), **variables}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environments = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    reply = _ask({"arguments": list(arguments), "cwd": str(cwd), "environments": environments})
    return reply["status"], reply["output"]


@functools.cache
def launched_environment(config: Path, options: tuple[str, ...], cwd: Path) -> dict[str, str]:
    """What `accelerate launch` adds to the environment of the processes that it starts."""
    arguments = [str(LAUNCH_ENVIRONMENT), "--config_file", str(config), *options, "script"]
    reply = _ask({"arguments": arguments, "cwd": str(cwd), "environments": [{}]})
    assert reply["status"] == 0, reply["output"]
    found: dict[str, str] = json.loads(reply["output"].splitlines()[-1])
    return found


def _ask(request: Mapping[str, object]) -> dict[str, Any]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply: dict[str, Any] = json.loads(server.stdout.readline())
    return reply


@functools.cache
def _server() -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | PLAIN,
    )
    atexit.register(server.kill)
    return server


# ---- in the parent of the forks -------------------------------------------------------------------------------------


def serve() -> None:
    """Answers requests until its input ends."""
    import matplotlib.pyplot  # noqa: F401 - for the picture at the end of a run

    import rlvr.trainer  # noqa: F401 - with torch, transformers, TRL and datasets: what takes long to import

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be printed among the replies
    for line in sys.stdin:
        request = json.loads(line)
        output = Path(tempfile.gettempdir()) / f"forked-{os.getpid()}.log"
        children = {_fork(request, environment, output) for environment in request["environments"]}
        status = _wait(children)
        replies.write(json.dumps({"status": status, "output": output.read_text(errors="replace")}) + "\n")
        replies.flush()
        output.unlink()


def _fork(request: Mapping[str, object], environment: Mapping[str, str], output: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(str(request["cwd"]))
        os.environ.update(environment)
        sys.argv = list(request["arguments"])  # type: ignore[call-overload]
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - the interpreter would print it and end with 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(children: set[int]) -> int:
    """0 if all end well; the status of the first that does not, after which the others are killed."""
    deadline, status = time.monotonic() + TIMEOUT_S, 0
    while children:
        pid, raw = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.discard(pid)
            status = status or os.waitstatus_to_exitcode(raw)
        if status or time.monotonic() > deadline:
            status = status or 124
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return status
        time.sleep(0.02)
    return status
