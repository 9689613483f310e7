"""Programs on a server that speaks the protocol of SandboxFusion (`POST /run_code`)."""

import json
import time
from typing import Any

import httpx

from rewards.sandbox.interface import Limits, Ran, SandboxFailure

PAUSES = (0.5, 1.0, 2.0)  # seconds before each new attempt
CONNECT_SECONDS = 10.0
EXTRA_SECONDS = 60.0  # for the server to queue and start a program
BUSY = (429, 502, 503, 504)


class SandboxFusion:
    """Isolation is the server's. A server that is down, busy or broken is a SandboxFailure, never a verdict.

    Proxies set in the environment are not used.
    """

    def __init__(self, server_url: str) -> None:
        self.url = server_url.rstrip("/") + "/run_code"

    def run(self, source: str, stdin: bytes, limits: Limits) -> Ran:
        """Runs `source` on the server, trying again when it cannot be reached or is busy. Raises SandboxFailure."""
        request = {
            "code": source,
            "language": "python",
            "stdin": stdin.decode(),
            "run_timeout": limits.seconds,
            "memory_limit_MB": limits.memory_mb,
        }
        return _ran(self._answer(json.dumps(request).encode(), limits), limits)

    def _answer(self, body: bytes, limits: Limits) -> dict[str, Any]:
        timeout = httpx.Timeout(limits.seconds + EXTRA_SECONDS, connect=CONNECT_SECONDS)
        problem = ""
        for pause in (0.0, *PAUSES):
            time.sleep(pause)
            try:
                headers = {"Content-Type": "application/json"}
                answer = httpx.post(self.url, content=body, headers=headers, timeout=timeout, trust_env=False)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            except httpx.HTTPError as error:
                raise SandboxFailure(f"{self.url}: {type(error).__name__}: {error}") from error
            if answer.status_code in BUSY:
                problem = f"status {answer.status_code}"
                continue
            return self._content(answer)
        raise SandboxFailure(f"{self.url} failed {1 + len(PAUSES)} times, at last with {problem}")

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code != httpx.codes.OK:
            raise SandboxFailure(f"{self.url}: status {answer.status_code}: {answer.text[:200]}")
        try:
            content = answer.json()
        except ValueError as error:
            raise SandboxFailure(f"{self.url}: the answer is not JSON") from error
        if not isinstance(content, dict):
            raise SandboxFailure(f"{self.url}: the answer is not an object")
        return content


def _ran(answer: dict[str, Any], limits: Limits) -> Ran:
    result = answer.get("run_result")
    if answer.get("status") not in ("Success", "Failed") or not isinstance(result, dict):
        raise SandboxFailure(f"the server reports {answer.get('status')!r}: {str(answer.get('message'))[:200]}")
    state, code = result.get("status"), result.get("return_code")
    stdout, stderr = result.get("stdout") or "", result.get("stderr") or ""
    timed_out = state == "TimeLimitExceeded"
    if not timed_out and (state != "Finished" or not isinstance(code, int)):
        raise SandboxFailure(f"the server reports a run with status {state!r} and return code {code!r}")
    output = str(stdout).encode("utf-8", errors="surrogatepass")
    too_much = len(output) > limits.output_bytes
    return Ran(
        stdout=output,
        stderr=str(stderr)[-4096:].strip(),
        status=None if timed_out or too_much else code,
        timed_out=timed_out,
        too_much_output=too_much,
    )
