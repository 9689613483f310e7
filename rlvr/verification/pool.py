"""Warm processes that judge completions, killed and replaced when they pass a deadline, die or run out of memory."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from rewards._item import ItemReward, Status
from rlvr.errors import RewardError
from rlvr.verification.tasks import Failure, Item, Limits, Outcome, RewardSpec, out_of_cpu, spec_of, timed_out

CHUNK = 16  # most items that a worker is given at once
# One thread per worker, and sets that sympy walks in the same order in every run.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}

# Not `-m`, as the package imports the module itself; and the main module of this process is not imported again.
PROGRAM = "import sys; from rlvr.verification.nursery import Nursery; Nursery(int(sys.argv[1])).run()"


@dataclass(eq=False)
class _Worker:
    pid: int
    connection: Connection
    assigned: deque[int] = field(default_factory=deque)  # indices of items, the one in progress first
    since: float = 0.0  # when that one began, by time.monotonic


class Pool:
    """`workers` processes, started at the first judgement and kept until `close`.

    A worker is killed when its judgement passes one of the limits on time; that on memory is enforced on Linux. No
    process outlives this one, even when this one is killed.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        assert workers >= 1
        self.size, self.limits = workers, limits
        self._lock = threading.Lock()
        self._forget()

    def judge(self, reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item, in their order. Raises RewardError when the reward cannot be loaded in a worker."""
        with self._lock:
            if self._owner != os.getpid():
                self._forget()  # a fork of the process that the workers belong to
            spec = spec_of(reward)
            self._load(spec)
            try:
                return _Round(self, spec, options, items).outcomes()
            except BaseException:
                # Their replies would be taken for those of the next call.
                for worker in [each for each in self.workers if each.assigned]:
                    self.discard(worker)
                raise

    def close(self) -> None:
        """Ends every process of the pool; a later judgement starts it again."""
        with self._lock:
            if self._nursery is not None and self._owner == os.getpid():
                self._control.close()
                self._socket.close()
                for worker in self.workers:
                    worker.connection.close()
                try:
                    self._nursery.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    self._nursery.kill()
                    self._nursery.wait()
            self._forget()

    def processes(self) -> list[int]:
        """The ids of the nursery and its workers."""
        return [] if self._nursery is None else [self._nursery.pid, *(each.pid for each in self.workers)]

    # ---- for a round ------------------------------------------------------------------------------------------------

    def hire(self) -> _Worker:
        """A new worker, which knows every reward loaded so far."""
        pid = self._ask("fork", self.limits)
        _, handles, _, _ = socket.recv_fds(self._socket, 1, 1)
        worker = _Worker(pid, Connection(handles[0]))
        self.workers.append(worker)
        return worker

    def discard(self, worker: _Worker) -> int:
        """Kills the worker if it lives; its exit code."""
        self.workers.remove(worker)
        worker.connection.close()
        return int(self._ask("bury", worker.pid))

    # ---- the nursery ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._owner = os.getpid()
        self._nursery: subprocess.Popen[bytes] | None = None
        self.workers: list[_Worker] = []
        self._loaded: set[RewardSpec] = set()

    def _load(self, spec: RewardSpec) -> None:
        if self._nursery is None or self._nursery.poll() is not None:
            self._forget()
            self._start()
        if spec not in self._loaded:
            if problem := self._ask("load", spec):
                remedy = "mend its module, or set rewards.workers to 0"
                raise RewardError(f"reward {spec.name!r} cannot be loaded in a worker process ({problem}); {remedy}")
            self._loaded.add(spec)
            for worker in list(self.workers):  # they were forked before it was loaded
                self.discard(worker)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # A session of its own: Ctrl-C is for this process, which then ends the others.
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
        )
        theirs.close()
        self._socket, self._control = ours, Connection(os.dup(ours.fileno()))

    def _ask(self, request: str, argument: Any) -> Any:
        try:
            self._control.send((request, argument))
            return self._control.recv()
        except (EOFError, OSError) as error:
            self._forget()
            remedy = "see its output above, or set rewards.workers to 0"
            raise RewardError(f"the process that reward workers are forked from has died; {remedy}") from error


class _Round:
    """One call of `Pool.judge`: who has which items, and what has come of them."""

    def __init__(self, pool: Pool, spec: RewardSpec, options: Mapping[str, Any], items: Sequence[Item]) -> None:
        self.pool, self.spec, self.options, self.items = pool, spec, options, items
        self.waiting = deque(range(len(items)))
        self.again: deque[int] = deque()  # killed a worker once: tried once more, alone
        self.deaths: set[int] = set()
        self.found: dict[int, Outcome] = {}

    def outcomes(self) -> list[Outcome]:
        """What came of each item, in their order."""
        while len(self.found) < len(self.items):
            self._assign()
            busy = {each.connection: each for each in self.pool.workers if each.assigned}
            if not busy:  # those that were idle had died
                continue
            earliest = min(each.since for each in busy.values()) + self.pool.limits.timeout_s
            for connection in wait(list(busy), max(earliest - time.monotonic(), 0.0)):
                assert isinstance(connection, Connection)
                self._receive(busy[connection])
            now = time.monotonic()
            for worker in busy.values():
                if worker.assigned and now - worker.since >= self.pool.limits.timeout_s and not _has_reply(worker):
                    self.found[worker.assigned.popleft()] = timed_out(self.pool.limits)
                    self._replace(worker)
        return [self.found[index] for index in range(len(self.items))]

    def _assign(self) -> None:
        while len(self.pool.workers) < min(self.pool.size, len(self.items)):
            self.pool.hire()
        for worker in [each for each in self.pool.workers if not each.assigned]:
            if self.again:
                chunk = [self.again.popleft()]
            else:
                # Small towards the end, so that none waits long behind another.
                size = max(1, min(CHUNK, len(self.waiting) // (2 * self.pool.size)))
                chunk = [self.waiting.popleft() for _ in range(min(size, len(self.waiting)))]
            if not chunk:
                return
            worker.assigned, worker.since = deque(chunk), time.monotonic()
            try:
                worker.connection.send((self.spec, self.options, [self.items[index] for index in chunk]))
            except OSError:
                self._died(worker)

    def _receive(self, worker: _Worker) -> None:
        """Takes every reply that has come."""
        try:
            while worker.assigned and worker.connection.poll():
                outcome: Outcome = worker.connection.recv()
                self.found[worker.assigned.popleft()] = outcome
                worker.since = time.monotonic()
                if isinstance(outcome, Failure) and outcome.reason.startswith("MemoryError"):
                    self._replace(worker)  # what it holds may never be freed
                    return
        except (EOFError, OSError):
            self._died(worker)

    def _died(self, worker: _Worker) -> None:
        """The item in progress took too long or did it some other way, or an accident: once more, alone, tells."""
        index = worker.assigned.popleft()
        code = self._replace(worker)
        if code == -signal.SIGPROF:
            self.found[index] = out_of_cpu(self.pool.limits)
        elif index in self.deaths:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.found[index] = Failure(Status.ERROR, f"the worker died of it ({how})")
        else:
            self.deaths.add(index)
            self.again.append(index)

    def _replace(self, worker: _Worker) -> int:
        """The worker's exit code; its other items go back to the head of the queue, and `_assign` hires anew."""
        self.waiting.extendleft(reversed(worker.assigned))
        worker.assigned.clear()
        return self.pool.discard(worker)


def _has_reply(worker: _Worker) -> bool:
    """Whether the reply came between the look and the deadline, or the worker died: both are the next look's."""
    return worker.connection.poll()
