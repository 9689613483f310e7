"""Programs in a plain subprocess under resource limits. This is not a sandbox."""

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path

from rewards.sandbox._launcher import remove_tree
from rewards.sandbox.interface import Limits, Ran
from rewards.sandbox.process import ENVIRONMENT, Child, launch_command

MARKER = "RLVR_UNSAFE_RUN"
END_SECONDS = 20.0
NOT_STOPPED = (
    "reads and writes every file of this user, uses the network, signals and inspects this user's other processes"
    " (the trainer among them), fills the disk with many files, and can outlive its run by killing its supervisor"
)


class UnsafeSubprocess:
    """Stops programs that are buggy, not programs that are hostile.

    It limits CPU time, memory, processes, file size, open files and output, passes nothing of the environment, and
    removes the scratch folder and every process that the program started, also those with a session of their own. A
    program nevertheless reads and writes every file of this user, uses the network, signals and inspects this user's
    other processes (the trainer among them), fills the disk with many files, and can outlive its run by killing its
    supervisor and erasing its environment.
    """

    def __init__(self) -> None:
        _warn_once()

    def run(self, source: str, stdin: bytes, limits: Limits) -> Ran:
        """Runs `source`. Raises SandboxFailure when no process can be started."""
        scratch = tempfile.mkdtemp(prefix="rlvr-code-")
        mark = secrets.token_hex(16)
        try:
            script = Path(scratch, "main.py")
            script.write_bytes(source.encode())
            child = Child(
                lambda status_fd: launch_command(limits, status_fd, str(script), scratch=scratch, uid=0),
                stdin,
                limits,
                end=_end,
                environment={**ENVIRONMENT, "HOME": scratch, MARKER: mark},
                folder=scratch,
            )
            return child.run()
        finally:
            _kill_marked(mark)
            remove_tree(scratch)


_warned: set[int] = set()


def _warn_once() -> None:
    if os.getpid() not in _warned:
        _warned.add(os.getpid())
        warnings.warn(
            f"backend unsafe_subprocess is no sandbox: a program {NOT_STOPPED}", category=UserWarning, stacklevel=4
        )


def _end(supervisor: "subprocess.Popen[bytes]") -> None:
    """Asks the supervisor to kill everything; kills its process group when it does not, as it may have been stopped."""
    supervisor.terminate()
    supervisor.send_signal(signal.SIGCONT)
    try:
        supervisor.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()


def _kill_marked(mark: str) -> None:
    """Kills whatever still carries the environment of this run, as the program may have killed its supervisor."""
    wanted = f"{MARKER}={mark}".encode()
    for _ in range(100):
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if wanted in _environment(pid)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""
