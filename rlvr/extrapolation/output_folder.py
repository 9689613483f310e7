"""A folder that appears under its name when it is complete, and not before."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvr.errors import ExtrapolationError
from rlvr.files import sync

SUFFIX = ".rlvr-partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(final: Path, num_bytes: int, report: Callable[[str], None]) -> Iterator[Path]:
    """A hidden folder beside `final`, which becomes `final` at the end; after an error, nothing is left of it.

    A killed process leaves the hidden folder, which the next run into `final` removes; it says so by `report`, and
    names those that lie beside it, of other outputs. Raises ExtrapolationError if `final` exists, if another process is
    writing it, or if the disk has no `num_bytes` left.
    """
    check_new(final)
    hidden = final.with_name(f".{final.name}{SUFFIX}")
    with writing_to(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(hidden, final, report)
    try:
        free = shutil.disk_usage(hidden).free
        if free < num_bytes:
            raise ExtrapolationError(
                f"{final} needs {num_bytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left; make room, or"
                " choose another --out."
            )
        yield hidden
        with writing_to(final):
            for path in (*hidden.rglob("*"), hidden):
                sync(path)
            check_new(final)
            hidden.rename(final)
            sync(final.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


@contextmanager
def kept_folder(folder: Path) -> Iterator[None]:
    """A folder that several runs of a command fill in turn; made where it is not there, and locked meanwhile.

    Raises ExtrapolationError if it cannot be made, or while another process has it.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _own(folder, folder)
    try:
        yield
    finally:
        os.close(lock)


def check_new(final: Path) -> None:
    """Raises ExtrapolationError if there is something of that name."""
    if final.exists() or final.is_symlink():
        raise ExtrapolationError(f"{final} exists already; remove it, or choose another --out.")


@contextmanager
def writing_to(final: Path) -> Iterator[None]:
    """Turns an OSError into an ExtrapolationError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            message = (
                f"{final} could not be written, because its disk or quota is full; make room, or choose another --out."
            )
        else:
            message = f"{final} could not be written ({error.strerror}); mend that, or choose another --out."
        raise ExtrapolationError(message) from error


def _locked(hidden: Path, final: Path, report: Callable[[str], None]) -> int:
    """Makes the folder and returns a descriptor that locks it for as long as this process lives."""
    if hidden.exists():
        lock = _own(hidden, final)
        shutil.rmtree(hidden)
        os.close(lock)
        report(f"removed {hidden}, which a killed run had left")
    for other in sorted(final.parent.glob(f".*{SUFFIX}")):
        if (free := _lock(other)) is not None:
            os.close(free)
            report(f"{other} was left by a killed run; remove it if it is of no use")
    hidden.mkdir()
    return _own(hidden, final)


def _own(hidden: Path, final: Path) -> int:
    lock = _lock(hidden)
    if lock is None:
        raise ExtrapolationError(f"Another process is writing {final}; wait for it, or choose another --out.")
    return lock


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None where a living process has it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
