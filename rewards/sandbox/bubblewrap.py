"""Programs in namespaces of their own, made by bubblewrap 0.7 or later."""

import contextlib
import os
import secrets
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from rewards.sandbox._launcher import processes
from rewards.sandbox.interface import Limits, Ran, SandboxFailure
from rewards.sandbox.process import ENVIRONMENT, Child, launch_command

FOLDER = "/tmp"
END_SECONDS = 10.0
FIRST_UID, NUM_UIDS = 2_000_000_000, 100_000_000


class Bubblewrap:
    """No network, its own processes, a read-only system without home or data folders, a small scratch in memory.

    Started by root, the program runs as a user id drawn for this run, as the kernel does not hold root to the process
    limit. Otherwise it runs in a user namespace.
    """

    def run(self, source: str, stdin: bytes, limits: Limits) -> Ran:
        """Runs `source`. Raises SandboxFailure when bubblewrap does not come up."""
        program = os.memfd_create("program")
        namespaces: list[int] = []
        try:
            os.write(program, source.encode())
            os.lseek(program, 0, os.SEEK_SET)
            child = Child(
                lambda status_fd: self._command(limits, status_fd, program),
                stdin,
                limits,
                end=_kill,
                environment={**ENVIRONMENT, "HOME": FOLDER},
                pass_fds=(program,),
                at_start=lambda process: namespaces.extend(_first_processes(process.pid)),
            )
            return child.run()
        finally:
            os.close(program)
            for handle in namespaces:
                select.select([handle], [], [], END_SECONDS)
                os.close(handle)

    def _command(self, limits: Limits, status_fd: int, program: int) -> list[str]:
        as_root = os.geteuid() == 0
        uid = FIRST_UID + secrets.randbelow(NUM_UIDS) if as_root else 0
        privileges = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
        namespaces = ["ipc", "pid", "net", "uts", "cgroup-try"] + ([] if as_root else ["user"])
        script = f"{FOLDER}/main.py"
        return [
            _executable() or "bwrap",
            *(f"--unshare-{each}" for each in namespaces),
            "--die-with-parent",
            *("--cap-drop", "ALL"),
            *(privileges if as_root else []),
            *("--proc", "/proc"),
            *("--dev", "/dev"),
            *("--remount-ro", "/dev"),  # else it is memory without a limit
            *("--perms", "1777", "--size", str(limits.file_mb << 20), "--tmpfs", FOLDER),
            *_system(),
            *("--perms", "0444", "--file", str(program), script),
            *("--remount-ro", "/"),
            *("--chdir", FOLDER),
            "--",
            *launch_command(limits, status_fd, script, scratch=None, uid=uid),
        ]


def why_unusable() -> str | None:
    """Why bubblewrap cannot be used here, None when it can. It may be installed but not allowed, so a run decides."""
    if _executable() is None:
        return "bubblewrap is not installed"
    return _failure_of_a_run(os.getpid())


@cache
def _failure_of_a_run(_process_id: int) -> str | None:
    # A child that waits for another one, as the process limit must leave room for it.
    source = "import os\nchild = os.fork()\nif child:\n    os.waitpid(child, 0)\n    print(os.listdir('.'), end='')"
    try:
        ran = Bubblewrap().run(source, b"", Limits(seconds=30.0))
    except SandboxFailure as failure:
        return str(failure)
    if ran.stdout == b"['main.py']":
        return None
    return f"a trial run ended with {ran.status}: {' '.join(ran.stderr.split()) or ran.stdout!r}"


def _executable() -> str | None:
    return shutil.which("bwrap")


def _system() -> Sequence[str]:
    """What a program sees of this machine, read-only: the system's libraries and the interpreter."""
    binds = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            binds += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            binds += ["--ro-bind", folder, folder]
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        # bubblewrap would make these folders for its own user id only.
        for parent in reversed(prefix.parents[:-1]):
            binds += ["--perms", "0755", "--dir", str(parent)]
        binds += ["--ro-bind", str(prefix), str(prefix)]
    return binds


def _first_processes(pid: int) -> Iterator[int]:
    """Handles of the children of bubblewrap: the first process of a namespace ends after all others in it have."""
    for child, (parent, _) in processes().items():
        if parent == pid:
            with contextlib.suppress(OSError):  # it is gone
                yield os.pidfd_open(child)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    # All that runs in its process namespace dies with it.
    process.kill()
    process.wait()
