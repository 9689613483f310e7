"""The process that reward workers are forked from, and the workers. Started by `rlvr.verification.pool`.

The nursery imports the rewards once and judges nothing itself, so a worker that was killed is replaced in milliseconds
and its process id cannot be taken by another before the nursery has buried it. Neither it nor the workers import torch,
unless a reward does.
"""

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from rewards._item import ItemReward
from rlvr.verification.tasks import Limits, Prepares, RewardSpec, one_line, perform, resolve

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0  # how often the nursery looks whether its parent is still there


class Nursery:
    """Answers the requests that come over the socket until its parent is gone; then ends every worker and itself."""

    def __init__(self, handle: int) -> None:
        self.socket = socket.socket(fileno=handle)
        self.control = Connection(os.dup(handle))
        self.parent = os.getppid()
        self.rewards: dict[RewardSpec, ItemReward] = {}
        self.children: set[int] = set()
        self.libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> None:
        """Returns once the parent has closed its end or died."""
        try:
            while True:
                # A process that the parent forked may hold the other end open, so the end of the file is not enough.
                if not self.control.poll(POLL_SECONDS):
                    if os.getppid() != self.parent:
                        return
                    continue
                self._answer(*self.control.recv())
        except (EOFError, OSError):
            return
        finally:
            for pid in list(self.children):
                self._bury(pid)

    def _answer(self, request: str, argument: Any) -> None:
        if request == "load":
            self.control.send(self._load(argument))
        elif request == "fork":
            self._fork(argument)
        else:
            self.control.send(self._bury(argument))

    def _load(self, spec: RewardSpec) -> str | None:
        """Why the reward cannot be loaded, None when it is."""
        try:
            reward = self.rewards[spec] = resolve(spec)
            if isinstance(reward, Prepares):
                reward.prepare()
        except BaseException as error:  # noqa: BLE001 - the user's module may raise anything, and the parent reports it
            return one_line(error)
        gc.collect()
        gc.freeze()  # what is loaded stays shared with the workers
        return None

    def _fork(self, limits: Limits) -> None:
        """Sends the id of a new worker, and then its end of a connection."""
        ours, theirs = socket.socketpair()
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self.socket.close()
            self.control.close()
            self._become_worker(nursery, Connection(theirs.detach()), limits)
        theirs.close()
        self.children.add(pid)
        _own_group(pid)
        self.control.send(pid)
        socket.send_fds(self.socket, [b"w"], [ours.fileno()])
        ours.close()

    def _become_worker(self, nursery: int, connection: Connection, limits: Limits) -> NoReturn:
        try:
            _own_group(0)
            if self.libc is not None:
                self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == nursery:
                _limit_memory(limits.memory_mb)
                signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is in the middle of
                serve(connection, self.rewards, limits)
        finally:
            os._exit(0)  # nothing of the nursery may run here

    def _bury(self, pid: int) -> int:
        """Ends a worker with all it started; its exit code, the negative signal where one killed it first."""
        self.children.discard(pid)
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # some systems say so of a group of zombies
            pass
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve(connection: Connection, rewards: Mapping[RewardSpec, ItemReward], limits: Limits) -> None:
    """Judges what comes, one reply per item, until the other end is closed."""
    while True:
        try:
            spec, options, items = connection.recv()
        except (EOFError, OSError):
            return
        for item in items:
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
            outcome = perform(rewards[spec], options, item)
            signal.setitimer(signal.ITIMER_PROF, 0)  # or what is left of it would also pay for reading the next batch
            connection.send(outcome)


def _own_group(pid: int) -> None:
    """Parent and child both do this, as either may be first; what a reward starts is killed with its group."""
    try:
        os.setpgid(pid, pid)
    except (ProcessLookupError, PermissionError):
        pass


def _limit_memory(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():  # elsewhere the kernel does not enforce the limit
        held = int(statm.read_text().split()[0]) * resource.getpagesize()
        limit = held + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
