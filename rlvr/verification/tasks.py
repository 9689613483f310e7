"""One judgement: naming a reward so that another process finds it, running it, and what may come of it."""

import importlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rewards._item import ItemReward, Judgement, Status
from rlvr.errors import RewardError
from rlvr.verification.loading import FILE_MODULE_PREFIX, file_module

Item = tuple[str, Mapping[str, Any]]  # text of a completion, and its columns


@dataclass(frozen=True)
class Failure:
    """The judgement did not come about. Whose fault that is, is another question."""

    status: Status  # TIMEOUT or ERROR
    reason: str


@dataclass(frozen=True)
class Breach:
    """A mistake in the reward or its options, whatever the completion; `text` is what to tell the user."""

    text: str


Outcome = Judgement | Failure | Breach


@dataclass(frozen=True)
class Limits:
    """What one judgement may use, and one worker."""

    timeout_s: float  # seconds from beginning to end, waiting included
    cpu_s: float  # seconds on the processor, without those of processes that the reward starts
    memory_mb: int  # of a worker, beyond what it holds when it is forked


@dataclass(frozen=True)
class RewardSpec:
    """Where another process finds a reward: an importable module, or a file."""

    module: str
    name: str
    file: str | None  # given where the module cannot be imported by its name


@runtime_checkable
class Prepares(Protocol):
    """A reward that can do once, before workers are forked, what each of them would have to do."""

    def prepare(self) -> None:
        """Loads and compiles what judgements need."""


def spec_of(reward: ItemReward) -> RewardSpec:
    """Raises RewardError for a reward that only this process can reach."""
    module, name = reward.__module__, reward.judge.__qualname__
    own = sys.modules.get(module)
    file = getattr(own, "__file__", None)
    by_file = module == "__main__" or module.startswith(FILE_MODULE_PREFIX)
    if "<locals>" in name or own is None or (by_file and file is None):
        remedy = "move it to the top level of a module, or set rewards.workers to 0"
        raise RewardError(f"reward {name!r} is defined where worker processes cannot find it; {remedy}")
    return RewardSpec(module, name, str(Path(str(file)).absolute()) if by_file else None)


def resolve(spec: RewardSpec) -> ItemReward:
    """The reward in this process; raises whatever importing its module raises."""
    if spec.file is None:
        found: Any = importlib.import_module(spec.module)
    else:
        found = file_module(spec.file, spec.name, Path())
    for part in spec.name.split("."):
        found = getattr(found, part)
    assert isinstance(found, ItemReward)
    return found


def perform(reward: ItemReward, options: Mapping[str, Any], item: Item) -> Outcome:
    """The judgement on one completion, here and now. Raises only what no reward should catch: KeyboardInterrupt."""
    text, row = item
    try:
        judgement: Any = reward.judge(text, **row, **options)
    except RewardError as error:
        return Breach(str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a reward raises is its failure
        return Failure(Status.ERROR, one_line(error))
    return checked(reward.judge.__name__, judgement)


def checked(name: str, judgement: Any) -> Judgement | Breach:
    """The judgement with a float for its value; NaN is no verdict."""
    if not isinstance(judgement, Judgement):
        return Breach(f"reward {name!r} returned {judgement!r:.200} for a completion; return a Judgement")
    value = judgement.value
    if value is None:
        return judgement
    if not isinstance(value, Real):
        return Breach(
            f"reward {name!r} returned the value {value!r:.200} for a completion; give a number, or None for no verdict"
        )
    if math.isinf(value):
        return Breach(f"reward {name!r} returned {float(value)} for a completion; return a finite number")
    if math.isnan(value):
        return Judgement(None, Status.ERROR, judgement.reason or "NaN")
    return Judgement(float(value), judgement.status, judgement.reason)


def one_line(error: BaseException) -> str:
    """Type and message of the error, cut to 500 characters."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a reward's exception may not even print
        text = "?"
    return f"{type(error).__name__}: {text}"[:500]


# ---- in this process ------------------------------------------------------------------------------------------------


def judge_here(reward: ItemReward, options: Mapping[str, Any], items: Sequence[Item], limits: Limits) -> list[Outcome]:
    """The judgements without workers, each within the limits on time when this is the main thread.

    They are signals, which only interrupt Python code. What this does not protect from: one call into C that
    does not return (a power of huge integers, a bad regular expression), a crash, a memory bomb, and anything at all
    outside the main thread or where there is no SIGALRM.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return [perform(reward, options, item) for item in items]
    return [_within(partial(perform, reward, options, item), limits) for item in items]


class _Deadline(BaseException):
    """Not an Exception, so that a reward that catches those does not catch this."""


def _within(judge: Callable[[], Outcome], limits: Limits) -> Outcome:
    try:
        with (
            _alarm(signal.ITIMER_REAL, signal.SIGALRM, limits.timeout_s),
            _alarm(signal.ITIMER_PROF, signal.SIGPROF, limits.cpu_s),
        ):
            return judge()
    except _Deadline as passed:
        return out_of_cpu(limits) if passed.args == (signal.SIGPROF,) else timed_out(limits)


@contextmanager
def _alarm(timer: int, number: signal.Signals, seconds: float) -> Iterator[None]:
    """Raises _Deadline in the block when the timer has run out, and every second from then on if that is swallowed."""

    def ring(*_: Any) -> None:
        raise _Deadline(number)

    previous_handler = signal.signal(number, ring)
    previous_timer = signal.setitimer(timer, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(timer, *previous_timer)
        signal.signal(number, previous_handler)


def timed_out(limits: Limits) -> Failure:
    """The outcome of a judgement that passed its deadline."""
    return Failure(Status.TIMEOUT, f"no judgement within {limits.timeout_s:g} s")


def out_of_cpu(limits: Limits) -> Failure:
    """The outcome of a judgement that used up its processor time."""
    return Failure(Status.TIMEOUT, f"no judgement within {limits.cpu_s:g} s of processor time (rewards.cpu_s)")
