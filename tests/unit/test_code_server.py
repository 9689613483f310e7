"""The reward `code` on a server that speaks the protocol of SandboxFusion, and on servers that fail."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards._item import Judgement, Status
from rewards.code import code
from rewards.sandbox import sandbox_fusion

IO = {"stdin_stdout": [{"stdin": "1 2", "stdout": "3"}, {"stdin": "2 2", "stdout": "4\n"}]}
PROGRAM = "print(sum(map(int, input().split())))"
ADD = {"function": "add", "cases": [[[1, 2], 3]]}


def execute(request: dict[str, Any]) -> dict[str, Any]:
    """What a SandboxFusion server answers, from a real run."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "main.py")
        script.write_text(request["code"])
        command = [sys.executable, str(script)]
        try:
            done = subprocess.run(
                command,
                input=request["stdin"],
                capture_output=True,
                text=True,
                timeout=request["run_timeout"],
                cwd=folder,
            )
        except subprocess.TimeoutExpired:
            result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
            return {"status": "Failed", "message": "", "run_result": result}
    result = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
    return {"status": "Failed" if done.returncode else "Success", "message": "", "run_result": result}


@contextmanager
def serving(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[Any]]]:
    """A server that gives these answers, then runs what it is sent; the requests it got."""
    requests, waiting = list[Any](), list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, json.loads(body)))
            status, content = waiting.pop(0) if waiting else (200, execute(requests[-1][1]))
            self.send_response(status)
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_fusion, "PAUSES", (0.01, 0.01))


def on_server(url: str, program: str = PROGRAM, tests: Any = IO, **options: Any) -> Judgement:
    options = {"timeout_s": 20.0, "total_timeout_s": 60.0, **options}
    return code.judge(program, tests, backend="sandbox_fusion", server_url=url, **options)


def test_server_runs_every_kind_of_test() -> None:
    with serving() as (url, requests):
        assert on_server(url + "/").value == 1.0
        assert on_server(url, "print(3)").value == 0.0
        assert on_server(url, "def add(a, b): return a + b", ADD).value == 1.0
        assert on_server(url, "def add(a, b): return a - b", ADD).value == 0.0
        assert on_server(url, "def add(a, b): return a + b", {"unit": "assert add(1, 2) == 3"}).value == 1.0
        assert on_server(url, "import os; os._exit(0)", {"unit": "assert add(1, 2) == 3"}).value == 0.0
        assert on_server(url, "while True: pass", timeout_s=0.5).status is Status.TIMEOUT
    path, request = requests[0]
    assert path == "/run_code"
    assert request == {
        "code": PROGRAM,
        "language": "python",
        "stdin": "1 2",
        "run_timeout": 20.0,
        "memory_limit_MB": 512,
    }


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"broken"),
        (500, {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "3"}}),
        (404, b""),
        (422, b"{}"),
        (200, b"no json"),
        (200, []),
        (200, {"status": "SandboxError", "message": "out of disk", "run_result": None}),
        (200, {"status": "Success", "message": "", "run_result": None}),
        (200, {"status": "Success", "run_result": {"status": "Error", "return_code": None}}),
        (200, {}),
    ],
)
def test_broken_server_is_no_verdict_and_is_not_asked_again(answer: tuple[int, Any]) -> None:
    with serving(answer) as (url, requests):
        judgement = on_server(url)
    assert judgement.value is None
    assert judgement.reason
    assert len(requests) == 1


def test_busy_server_is_asked_again() -> None:
    with serving((503, b""), (429, b"")) as (url, requests):
        assert on_server(url).value == 1.0
    assert len(requests) == 4
    with serving(*[(503, b"")] * 3) as (url, requests):
        assert on_server(url).value is None
    assert len(requests) == 3


def test_server_that_is_down_or_silent_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as (url, _):
        pass
    assert "failed 3 times" in on_server(url).reason
    monkeypatch.setattr(sandbox_fusion, "EXTRA_SECONDS", 0.0)
    with serving((200, {})) as (url, _):
        monkeypatch.setattr(sys.modules[__name__], "execute", lambda _: threading.Event().wait(2) or {})
        on_server(url)  # the answer above
        judgement = on_server(url, timeout_s=0.2)
    assert judgement.value is None
    assert "ReadTimeout" in judgement.reason


def test_proxies_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as (url, _):
        assert on_server(url).value == 1.0
