"""What every hostile program is checked for: the time it takes, the processes and folders that it leaves."""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rewards._item import Judgement
from rewards.code import code
from rewards.sandbox import bubblewrap, process

DEADLINE = 60.0  # seconds for any program on a busy machine; those that hang would take forever


def processes_with(token: str) -> list[int]:
    """Processes that have the token in their environment or arguments."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        for file in ("environ", "cmdline"):
            try:
                held = Path("/proc", name, file).read_bytes()
            except OSError:
                continue
            if token.encode() in held and int(name) != os.getpid():
                found.append(int(name))
    return found


@dataclass(frozen=True)
class Arena:
    """Runs programs in one backend."""

    backend: str
    token: str
    temporary: Path  # where scratch folders are made
    outside: Path

    def judge(self, program: str, tests: Any, **options: Any) -> Judgement:
        """The verdict, once time, processes and folders were checked."""
        text = program.replace("@TOKEN@", self.token).replace("@OUTSIDE@", str(self.outside))
        start = time.monotonic()
        options = {"backend": self.backend, "timeout_s": 1.5, "total_timeout_s": 20.0, **options}
        judgement = code.judge(f"```python\n{text}\n```", tests, **options)
        assert time.monotonic() - start < DEADLINE
        assert processes_with(self.token) == []
        assert [path for path in self.temporary.iterdir() if "moved" not in path.name] == []
        assert [path.name for path in self.outside.iterdir()] == ["kept"]
        return judgement


@pytest.fixture(params=["bubblewrap", "unsafe_subprocess"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "bubblewrap" and (reason := bubblewrap.why_unusable()):
        pytest.skip(f"bubblewrap does not work here: {reason}")
    return str(request.param)


@pytest.fixture
def arena(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    token = f"TOKEN{secrets.token_hex(8)}"
    monkeypatch.setitem(process.ENVIRONMENT, "RLVR_TEST", token)
    temporary, outside = tmp_path / "temporary", tmp_path / "outside"
    temporary.mkdir()
    outside.mkdir()
    (outside / "kept").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield Arena(backend, token, temporary, outside)
    for pid in processes_with(token):
        os.kill(pid, 9)
