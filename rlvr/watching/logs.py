"""What a process logs, in a file of its own; the terminal shows what it would without."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

CLOSED = ("transformers", "DeepSpeed", "vllm")  # loggers that may keep their records to their own handlers
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logging_to(file: TextIO) -> Iterator[logging.Logger]:
    """Appends all records of Python's logging and all warnings to the file; yields a logger that writes only there."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    handlers: list[tuple[logging.Logger, logging.Handler]] = [(root, handler)]
    handlers += [(closed, handler) for name in CLOSED if not (closed := logging.getLogger(name)).propagate]
    if not root.handlers:
        handlers.append((root, _LastResort()))
    for logger, each in handlers:
        logger.addHandler(each)
    shown, own = warnings.showwarning, alone("warnings", handler)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        shown(message, category, filename, lineno, file, line)
        own.warning("%s", warnings.formatwarning(message, category, filename, lineno).rstrip())

    warnings.showwarning = show
    try:
        yield alone("rlvr", handler)
    finally:
        warnings.showwarning = shown
        for logger, each in handlers:
            logger.removeHandler(each)


def alone(name: str, handler: logging.Handler) -> logging.Logger:
    """A logger outside of the tree of loggers: nothing but the handler gets its records."""
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


class _LastResort(logging.Handler):
    """Prints what `logging` prints by itself as long as no handler is set, which ours in the root would end."""

    def emit(self, record: logging.LogRecord) -> None:
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not _has_own_handlers(record.name):
            last.handle(record)


def _has_own_handlers(name: str) -> bool:
    """Whether a logger or one above it, other than the root, has a handler."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None and logger.parent is not None:
        if logger.handlers:
            return True
        logger = logger.parent
    return False
