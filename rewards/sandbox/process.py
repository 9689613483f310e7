"""A child process with all its pipes served at once, its output capped while it is read, and a deadline."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rewards.sandbox.interface import KILLED_FOR_CPU_TIME, Limits, Ran, SandboxFailure

START_SECONDS = 30.0  # for the sandbox to come up, before the program's own time starts
STDERR_BYTES = 4096
CHUNK = 1 << 16
# Nothing of the caller's environment is in it.
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
LAUNCHER = Path(__file__).with_name("_launcher.py")


def interpreter() -> str:
    """The Python that programs run with: the one below any virtual environment, which they do not see."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def python_command(script: str) -> list[str]:
    """Runs a script without site-packages, user settings or the current folder on the path."""
    return [interpreter(), "-I", "-S", "-B", "-X", "utf8", script]


def launch_command(limits: Limits, status_fd: int, script: str, *, scratch: str | None, uid: int) -> list[str]:
    """The command that sets the limits and runs the script; given a scratch folder it supervises and removes it."""
    settings = {
        "seconds": limits.seconds,
        "memory_mb": limits.memory_mb,
        "processes": limits.processes,
        "file_mb": limits.file_mb,
        "open_files": limits.open_files,
        "status_fd": status_fd,
        "supervise": scratch is not None,
        "scratch": scratch,
        "uid": uid,
        "parent": os.getpid(),
    }
    source = LAUNCHER.read_text(encoding="utf-8")
    return [interpreter(), "-I", "-S", "-B", "-c", source, json.dumps(settings), *python_command(script)]


class Child:
    """One run of a command, fed and read until it ends, is too slow or says too much."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        stdin: bytes,
        limits: Limits,
        *,
        end: Callable[["subprocess.Popen[bytes]"], None],
        environment: dict[str, str],
        folder: str | None = None,
        pass_fds: Sequence[int] = (),
        at_start: Callable[["subprocess.Popen[bytes]"], None] | None = None,
    ) -> None:
        self.limits, self.end, self.at_start, self.left = limits, end, at_start, memoryview(stdin)
        self.stdout, self.stderr, self.started = bytearray(), bytearray(), False
        self.status_read, status_write = os.pipe()
        try:
            self.process = subprocess.Popen(
                command(status_write),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=folder,
                start_new_session=True,
                pass_fds=(status_write, *pass_fds),
            )
        except OSError as error:
            os.close(self.status_read)
            raise SandboxFailure(f"cannot start a process: {error}") from error
        finally:
            os.close(status_write)

    def run(self) -> Ran:
        """Serves the pipes until the end. Raises SandboxFailure when the program never started."""
        pipes = [self.process.stdin, self.process.stdout, self.process.stderr]
        with selectors.DefaultSelector() as self.selector, contextlib.ExitStack() as closing:
            closing.callback(self._stop)
            closing.callback(os.close, self.status_read)
            self.selector.register(self.status_read, selectors.EVENT_READ, self._read_status)
            for pipe, serve in zip(pipes, (self._write_stdin, self._read_stdout, self._read_stderr), strict=True):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                event = selectors.EVENT_WRITE if pipe is self.process.stdin else selectors.EVENT_READ
                self.selector.register(pipe, event, serve)
            timed_out = self._serve()
        if not self.started:
            raise SandboxFailure(f"the sandbox did not start: {self._stderr_end() or 'it said nothing'}")
        too_much = len(self.stdout) > self.limits.output_bytes
        code = self.process.returncode
        status = None if timed_out or too_much else code if code >= 0 else 128 - code
        return Ran(
            stdout=bytes(self.stdout),
            stderr=self._stderr_end(),
            status=status,
            timed_out=timed_out or status == KILLED_FOR_CPU_TIME,
            too_much_output=too_much,
        )

    def _serve(self) -> bool:
        """Whether the time was up."""
        deadline = time.monotonic() + START_SECONDS
        while len(self.stdout) <= self.limits.output_bytes:
            ended = self.process.poll() is not None
            started = self.started
            # What is still in the pipes after the end is read without waiting for whoever else holds them.
            ready = self.selector.select(0 if ended else max(0.0, min(0.05, deadline - time.monotonic())))
            for key, _ in ready:
                key.data()
            if self.started and not started:
                deadline = time.monotonic() + self.limits.seconds
            if ended and not any(key.fileobj is not self.process.stdin for key, _ in ready):
                return False
            if not ended and time.monotonic() >= deadline:
                return True
        return False

    def _stop(self) -> None:
        if self.process.poll() is None:
            self.end(self.process)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read_status(self) -> None:
        # One byte from the launcher, before the program runs; whatever a program may write here later is not read.
        self.started = os.read(self.status_read, 1) == b"s"
        if self.started and self.at_start is not None:
            self.at_start(self.process)
        self.selector.unregister(self.status_read)

    def _write_stdin(self) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        try:
            self.left = self.left[os.write(pipe.fileno(), self.left[:CHUNK]) :] if self.left else self.left
        except BrokenPipeError:
            self.left = self.left[:0]
        if not self.left:
            self.selector.unregister(pipe)
            pipe.close()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        if chunk := os.read(self.process.stdout.fileno(), CHUNK):
            self.stdout += chunk
        else:
            self.selector.unregister(self.process.stdout)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        if chunk := os.read(self.process.stderr.fileno(), CHUNK):
            self.stderr = (self.stderr + chunk)[-STDERR_BYTES:]
        else:
            self.selector.unregister(self.process.stderr)

    def _stderr_end(self) -> str:
        return self.stderr.decode("utf-8", errors="replace").strip()
