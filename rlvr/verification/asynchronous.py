"""Asynchronous judgements: how many run at once, how often one is tried, and when the wait is over."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rewards._item import Status
from rlvr.verification.tasks import Failure, one_line

logger = logging.getLogger(__name__)

ATTEMPTS = 4
FIRST_DELAY_S, DELAY_FACTOR = 0.5, 2.0  # before the second attempt, and from each attempt to the next
# Clients whose connection errors are known without importing them.
TRANSIENT = {
    "httpx.TransportError",
    "aiohttp.ClientConnectionError",
    "aiohttp.ClientPayloadError",
    "aiohttp.ServerTimeoutError",
}
GRACE_S = 1.0  # for cancelled judgements to end

Attempt = Callable[[], Awaitable[Any]]


class TransientRewardError(Exception):
    """Raised by an asynchronous reward to be tried again, as when a server is busy."""


@dataclass(frozen=True)
class AsyncLimits:
    """How the asynchronous judgements of one step are run."""

    concurrency: int  # judgements at once
    timeout_s: float  # for all of them together
    first_delay_s: float = FIRST_DELAY_S


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: what the reward declares, and connections that failed."""
    if isinstance(error, TransientRewardError | ConnectionError | TimeoutError):
        return True
    return any(f"{kind.__module__.partition('.')[0]}.{kind.__name__}" in TRANSIENT for kind in type(error).__mro__)


def run_attempts(attempts: Sequence[Attempt], limits: AsyncLimits) -> list[Any]:
    """The result of each, in their order; a Failure for one that raised, or was not done in time.

    Runs an event loop, in a thread of its own where this one has a loop running. A coroutine that blocks its thread
    blocks the others and is beyond the deadline's reach.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_gather(attempts, limits))
    # A thread that runs a loop, such as a notebook's, cannot wait for a second one.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, _gather(attempts, limits)).result()


async def _gather(attempts: Sequence[Attempt], limits: AsyncLimits) -> list[Any]:
    slots = asyncio.Semaphore(limits.concurrency)
    tasks = [asyncio.ensure_future(_persistent(attempt, slots, limits.first_delay_s)) for attempt in attempts]
    if not tasks:
        return []
    _, late = await asyncio.wait(tasks, timeout=limits.timeout_s)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=GRACE_S)
        logger.warning("%d of %d asynchronous judgements were not done in time", len(late), len(tasks))
    failure = Failure(Status.TIMEOUT, f"not done within {limits.timeout_s:g} s")
    return [failure if task in late else task.result() for task in tasks]


async def _persistent(attempt: Attempt, slots: asyncio.Semaphore, delay: float) -> Any:
    for remaining in reversed(range(ATTEMPTS)):
        try:
            async with slots:
                return await attempt()
        except Exception as error:  # noqa: BLE001 - one judgement that failed must not end the run
            if remaining == 0 or not is_transient(error):
                logger.warning("an asynchronous judgement failed: %s", one_line(error))
                return Failure(Status.ERROR, one_line(error))
        # Spread, so that a server that turned many away does not see them all again at once.
        await asyncio.sleep(delay * random.SystemRandom().uniform(0.5, 1.5))
        delay *= DELAY_FACTOR
    raise AssertionError
