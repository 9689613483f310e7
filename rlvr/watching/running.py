"""Everything that watches a process of a run, from its start to its end."""

import faulthandler
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from accelerate import PartialState

from rlvr.config.watch import WatchConfig
from rlvr.watching.logs import logging_to
from rlvr.watching.progress import Progress
from rlvr.watching.watchdog import LOG, Rank, Watchdog


@contextmanager
def watched(config: WatchConfig, run_dir: Path, progress: Progress) -> Iterator[None]:
    """Heartbeat, watchdog and log of this process, in `run_dir`/ranks/rank-N, as long as the block runs.

    SIGUSR1 writes the stacks of all threads into the log, and what ends the block ends up there as well.
    """
    process = PartialState()
    folder = run_dir / "ranks" / f"rank-{process.process_index}"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        file = stack.enter_context((folder / LOG).open("a"))
        log = stack.enter_context(logging_to(file))
        rank = Rank(process.process_index, process.num_processes, folder, file, log)
        log.info("process %d of %d, pid %d on %s", rank.index, rank.count, os.getpid(), socket.gethostname())
        watchdog = Watchdog(config, progress, rank)

        def conclude(kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
            if error is None:
                log.info("finished")
            else:
                log.error("ended at step %d in %r", progress.place.step, progress.place.stage, exc_info=error)
            watchdog.end("finished" if error is None else "stopped")

        stack.push(conclude)
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        stack.callback(faulthandler.unregister, signal.SIGUSR1)
        progress.enter("start")  # what was built before took its time
        watchdog.start()
        yield
