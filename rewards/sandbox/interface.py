"""What every sandbox does: run one Python source with one input under limits."""

from dataclasses import dataclass
from typing import Protocol

KILLED_FOR_CPU_TIME = 128 + 24  # the exit status of a shell after SIGXCPU


@dataclass(frozen=True)
class Limits:
    """What a program may use. The process limit counts threads, and the memory limit holds for each process."""

    seconds: float
    memory_mb: int = 512
    output_bytes: int = 1 << 20
    processes: int = 32
    file_mb: int = 64  # of one file, and of the whole scratch folder where that can be limited
    open_files: int = 64


@dataclass(frozen=True)
class Ran:
    """How a program ended. `status` is its exit status, 128 + n after signal n, None when a limit of ours ended it."""

    stdout: bytes
    stderr: str  # the end of it
    status: int | None
    timed_out: bool = False
    too_much_output: bool = False


class SandboxFailure(Exception):
    """The sandbox did not do its work, which says nothing about the program."""


class Sandbox(Protocol):
    """A place where hostile programs run."""

    def run(self, source: str, stdin: bytes, limits: Limits) -> Ran:
        """Runs `source` as `__main__` until it ends or a limit ends it. Raises SandboxFailure."""
        ...
