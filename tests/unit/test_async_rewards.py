"""Asynchronous rewards against a server of this machine: limit, retries, deadline, and what a failure means."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from rewards._item import Judgement, Status, graded, item_reward
from rlvr.errors import RewardError
from rlvr.verification import RewardFunction, TransientRewardError, Verdicts
from rlvr.verification.asynchronous import AsyncLimits, is_transient, run_attempts
from rlvr.verification.tasks import Failure
from tests.unit.test_verification import TEXTS, judged

FAST = AsyncLimits(concurrency=8, timeout_s=30.0, first_delay_s=0.01)


class Server(ThreadingHTTPServer):
    """Scores a completion by its length, after doing what `behaviour` says of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour: dict[str, str] = {}
        self.calls: Counter[str] = Counter()
        self.running = self.most = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with self.server.lock:
            self.server.calls[text] += 1
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        behaviour = self.server.behaviour.get(text, "")
        time.sleep(5.0 if behaviour == "slow" else 0.05)
        with self.server.lock:
            self.server.running -= 1
        if behaviour == "drop" or (behaviour == "drop once" and self.server.calls[text] == 1):
            self.close_connection = True
            self.connection.close()
            return
        busy = behaviour == "busy" or (behaviour == "busy once" and self.server.calls[text] == 1)
        body = "not json" if behaviour == "nonsense" else json.dumps({"score": len(text)})
        self.send_response(503 if busy else 200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def remote(server: Server) -> Any:
    async def score(text: str) -> Judgement:
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.post(f"http://127.0.0.1:{server.server_port}", content=text)
        if response.status_code == 503:
            raise TransientRewardError("busy")
        return graded(response.json()["score"])

    return score


def asked(server: Server, **config: Any) -> Verdicts:
    return judged(RewardFunction("remote", 1.0, item_reward(remote(server))), config=config)


def test_judgements_of_a_server_arrive_in_their_places(server: Server) -> None:
    assert asked(server).rewards == [1.0, 2.0, 3.0]
    assert server.most > 1


def test_no_more_judgements_run_at_once_than_the_limit(server: Server) -> None:
    results = run_attempts([lambda: remote(server)("abc") for _ in range(12)], AsyncLimits(3, 30.0))
    assert [each.value for each in results] == [3.0] * 12
    assert server.most == 3


@pytest.mark.parametrize("behaviour", ["busy once", "drop once"])
def test_what_is_transient_is_tried_again(server: Server, behaviour: str) -> None:
    server.behaviour = {"bb": behaviour}
    assert asked(server).rewards == [1.0, 2.0, 3.0]
    assert server.calls == {"a": 1, "bb": 2, "ccc": 1}


@pytest.mark.parametrize(("behaviour", "calls"), [("busy", 4), ("drop", 4), ("nonsense", 1)])
def test_judgement_that_failed_has_no_value_and_the_others_do(server: Server, behaviour: str, calls: int) -> None:
    server.behaviour = {"bb": behaviour}
    verdicts = asked(server)
    assert verdicts.rewards == [1.0, None, 3.0]
    assert verdicts.outcomes == [1.0, None, 1.0]
    assert verdicts.statuses == [Status.CORRECT, Status.ERROR, Status.CORRECT]
    assert server.calls["bb"] == calls


def test_judgement_that_is_late_has_no_value(server: Server) -> None:
    server.behaviour = {"bb": "slow"}
    started = time.monotonic()
    verdicts = asked(server, async_timeout_s=1.5)
    assert verdicts.rewards == [1.0, None, 3.0]
    assert verdicts.statuses[1] is Status.TIMEOUT
    assert time.monotonic() - started < 4.5  # the slow answer takes 5


def test_the_deadline_is_of_all_attempts_together() -> None:
    async def busy() -> None:
        raise TransientRewardError

    results = run_attempts([busy], AsyncLimits(1, timeout_s=0.3, first_delay_s=30.0))
    assert [each.status for each in results] == [Status.TIMEOUT]


def test_batch_function_that_fails_has_no_values() -> None:
    async def broken(completions: list[str]) -> list[float]:
        raise ZeroDivisionError

    verdicts = judged(RewardFunction("broken", 1.0, broken))
    assert verdicts.rewards == [None] * 3
    assert verdicts.statuses == [Status.ERROR] * 3


def test_batch_function_is_tried_again_as_a_whole() -> None:
    calls = []

    async def flaky(completions: list[str]) -> list[float]:
        calls.append(completions)
        if len(calls) == 1:
            raise TransientRewardError
        return [1.0] * len(completions)

    assert judged(RewardFunction("flaky", 1.0, flaky)).rewards == [1.0] * 3
    assert calls == [TEXTS] * 2


def test_breach_of_the_contract_is_an_error_of_the_user_here_too() -> None:
    async def short(completions: list[str]) -> list[float]:
        return [1.0]

    async def bare(text: str) -> float:
        return 1.0

    with pytest.raises(RewardError, match="reward 'short' returned 1 values for 3 completions"):
        judged(RewardFunction("short", 1.0, short))
    with pytest.raises(RewardError, match=r"reward 'bare' returned 1\.0 for a completion; return a Judgement"):
        judged(RewardFunction("bare", 1.0, item_reward(bare)))  # type: ignore[arg-type]


def test_connection_errors_are_known_by_name() -> None:
    client_error = type("ClientConnectionError", (Exception,), {"__module__": "aiohttp.client_exceptions"})
    assert is_transient(type("ClientOSError", (client_error,), {"__module__": "aiohttp.client_exceptions"})())
    assert is_transient(httpx.ConnectError("no"))
    assert is_transient(ConnectionResetError())
    assert is_transient(TimeoutError())
    assert not is_transient(type("ClientConnectionError", (Exception,), {"__module__": "mine"})())
    assert not is_transient(ValueError())


def test_failures_keep_the_places_of_what_was_run_within_a_loop() -> None:
    async def fine() -> int:
        return 1

    async def wrong() -> int:
        raise ValueError("no")

    async def notebook() -> list[Any]:
        return run_attempts([fine, wrong, fine], FAST)

    assert asyncio.run(notebook()) == [1, Failure(Status.ERROR, "ValueError: no"), 1]
