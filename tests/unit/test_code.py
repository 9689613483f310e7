"""The reward `code`: which text is the program, what passes a test, and whose fault a failure is."""

import importlib
import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards._code_cases import parse_tests, same_output, same_value
from rewards._item import Judgement, Status
from rewards.code import code, program_in
from rewards.sandbox import bubblewrap, choose, interface
from rlvr.errors import RewardError

IO = {"stdin_stdout": [{"stdin": "1 2", "stdout": "3"}, {"stdin": "2 2", "stdout": "4\n"}]}
PROGRAM = "print(sum(map(int, input().split())))"


class Answering:
    """A sandbox that runs nothing: it gives these answers, or fails."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.limits = list(answers), list[interface.Limits]()

    def run(self, source: str, stdin: bytes, limits: interface.Limits) -> interface.Ran:
        self.limits.append(limits)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return interface.Ran(answer, "", 0) if isinstance(answer, bytes) else answer


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answering]:
    def install(*answers: Any) -> Answering:
        answering = Answering(*answers)
        monkeypatch.setattr(importlib.import_module("rewards.code"), "choose", lambda *_: answering)
        return answering

    return install


# ---- program --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na\n\n b\n```\nand\n```Python\nc\n```", "c"),
        ("```python\na\n```\nprints\n```\n3\n```\n```text\n3\n```", "a"),
        ("```bash\nls\n```", ""),
        ("~~~python\na\n~~~", "a"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''"),
        ("```python\na\n```\n```python\nb", "a"),
        ("```python\na", "```python\na"),
        ("<think>```python\na\n```</think>```python\nb\n```", "b"),
        ("<think>```python\na\n```</think>", ""),
        ("```python\na\n```<answer>b</answer>", "b"),
        ("<answer>```python\na\n```</answer>\n```python\nb\n```", "a"),
        ("  a\n  b\n", "  a\n  b"),
        ("a", "a"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_program_in_a_completion(text: str, program: str) -> None:
    assert program_in(text).strip() == program.strip()


def test_extraction_takes_one_pass() -> None:
    for text in ("```" * 300_000, "```python\n" * 100_000, "`" * 1_000_000, "<answer>" * 100_000):
        program_in(text)


# ---- comparison -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        ("3 \n\n", "3", None, True),
        ("1\n2", "1 \r\n2\n", None, True),
        (" 3", "3", None, False),
        ("1\n\n2", "1\n2", None, False),
        ("", "3", None, False),
        ("0.30000000000000004", "0.3", None, False),
        ("0.30000000000000004", "0.3", 1e-9, True),
        ("x 1000001", "x 1000000", 1e-5, True),
        ("1  2", "1 2", 0.0, True),
        ("1 2 3", "1 2", 1e-6, False),
        ("1\n2", "1 2", 1e-6, False),
        ("nan", "1", 1e-6, False),
        ("inf", "1e999", 1e-6, False),
        ("one", "1", 1e-6, False),
    ],
)
def test_output(printed: str, expected: str, tolerance: float | None, same: bool) -> None:
    assert same_output(printed, expected, tolerance) is same


@pytest.mark.parametrize(
    ("value", "expected", "tolerance", "same"),
    [
        ([1, {"a": None}], [1, {"a": None}], None, True),
        (1, True, None, False),
        (0, False, None, False),
        (1, 1.0, None, True),
        (1.0, "1.0", None, False),
        (0.1 + 0.2, 0.3, None, False),
        ([0.1 + 0.2], [0.3], 1e-9, True),
        (3, 4, 2.0, False),
        (10**400, 1.0, 1e-9, False),
        (float("nan"), 1.0, 1e9, False),
        ([1, 2], [1], None, False),
        ({"a": 1}, {"a": 1, "b": 2}, None, False),
        (None, 0, None, False),
    ],
)
def test_value(value: Any, expected: Any, tolerance: float | None, same: bool) -> None:
    assert same_value(value, expected, tolerance) is same


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_all_or_a_share_of_the_tests(sandbox: Callable[..., Answering]) -> None:
    sandbox(b"3", b"4")
    assert code.judge(PROGRAM, IO) == Judgement(1.0, Status.CORRECT)
    stopped = sandbox(b"9")
    assert code.judge(PROGRAM, json.dumps(IO)).value == 0.0
    assert len(stopped.limits) == 1
    sandbox(b"9", b"4")
    assert code.judge(PROGRAM, IO, score="fraction").value == 0.5
    sandbox(interface.Ran(b"3", "", None, timed_out=True), interface.Ran(b"4", "", 1))
    assert code.judge(PROGRAM, IO, score="fraction").status is Status.TIMEOUT


def test_failure_of_the_sandbox_is_no_verdict(sandbox: Callable[..., Answering]) -> None:
    sandbox(b"3", interface.SandboxFailure("the server is down"))
    assert code.judge(PROGRAM, IO) == Judgement(None, Status.ERROR, "the server is down")


def test_time_of_all_tests_is_limited(sandbox: Callable[..., Answering]) -> None:
    limits = sandbox(b"3", b"4").limits
    code.judge(PROGRAM, IO, timeout_s=7.0, total_timeout_s=3.0)
    assert 0 < limits[1].seconds < limits[0].seconds <= 3.0
    sandbox()
    assert code.judge(PROGRAM, IO, total_timeout_s=1e-9).status is Status.TIMEOUT


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        {"stdin_stdout": []},
        {"stdin_stdout": [{"stdin": "1"}]},
        {"stdin_stdout": [{"stdin": "1", "stdout": 3}]},
        {"stdin_stdout": [{"stdin": "\ud800", "stdout": "3"}]},
        {"stdin_stdout": "3"},
        {"function": "add"},
        {"function": "add()", "cases": [[[1], 2]]},
        {"function": "add", "cases": [[1, 2]]},
        {"function": "add", "cases": [[[1], 2, 3]]},
        {"function": "add", "cases": [[[1], {1, 2}]]},
        {"unit": ""},
        {"unit": "assert f(1 =="},
        {"unit": "assert f(1)\0"},
        {"unit": []},
        {"unit": [3]},
        {"unit": "assert f(1)", "names": "f"},
        {"unit": "assert f(1)", "stdin_stdout": []},
    ],
)
def test_malformed_tests_are_no_verdict(tests: Any) -> None:
    judgement = code.judge(PROGRAM, tests, backend="unsafe_subprocess")
    assert judgement.value is None
    assert judgement.reason


def test_columns_that_are_absent_do_not_count() -> None:
    assert len(parse_tests({"stdin_stdout": None, "function": "f", "cases": [[[1], (2,)]], "unit": None})) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "most"}, "all or fraction"),
        ({"language": "cobol"}, "only python"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"total_timeout_s": float("inf")}, "total_timeout_s"),
        ({"memory_mb": 8}, "memory_mb"),
        ({"float_tolerance": -1}, "float_tolerance"),
        ({"backend": "docker"}, "backends are auto"),
        ({"backend": "sandbox_fusion"}, "server_url"),
        ({"backend": "unsafe_subprocess", "server_url": "http://localhost"}, "takes no `server_url`"),
    ],
)
def test_option_without_a_meaning_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        code.judge(PROGRAM, IO, **options)


def test_program_that_is_no_text_or_too_long_is_wrong() -> None:
    for program in ("print('\ud800')", "print(3)\0", "#" * 2_000_000):
        assert code.judge(program, IO).status is Status.WRONG


# ---- tests of objects and functions ---------------------------------------------------------------------------------

OBJECTS = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise Empty('no item')
        return self.items.pop()
    def __len__(self): return len(self.items)
class Empty(LookupError): pass
def sort(items): items.sort()
def pair(a, b=2): return (a, b)
def sets(): return {1, 2}, b'x', {(1, 2): [3]}
def count():
    yield from (1, 2)
if __name__ == '__main__': raise SystemExit(1)
"""
OBJECT_TESTS = """
stack = Stack()
stack.push([1]); stack.push((2, 3))
assert len(stack) == 2 and stack.pop() == (2, 3) and stack.items == [[1]]
stack.pop()
try: stack.pop(); assert False
except Empty as error: assert str(error) == 'no item' and isinstance(error, LookupError)
items = [3, 1]; sort(items); assert items == [1, 3]
assert pair(1) == (1, 2) != [1, 2] and pair(1, b=4) == (1, 4)
assert sets() == ({1, 2}, b'x', {(1, 2): [3]})
assert list(count()) == [1, 2]
def check(candidate): assert candidate(7) == (7, 2)
check(pair)
"""


@pytest.mark.filterwarnings("ignore:backend unsafe_subprocess")
@pytest.mark.parametrize(
    ("program", "tests", "value"),
    [
        (OBJECTS, {"unit": OBJECT_TESTS}, 1.0),
        (OBJECTS, {"unit": ["assert pair(1) == (1, 2)", "assert pair(1) == (1, 3)"]}, 0.5),
        ("def sum(a): return 9", {"unit": "assert sum([1]) == 1"}, 1.0),
        ("def sum(a): return 9", {"unit": "assert sum([1]) == 9", "names": ["sum"]}, 1.0),
        ("from math import *\ndef isclose(a, b): return True", {"unit": "import math\nassert math.isclose(1, 2)"}, 0.0),
        (
            "class Solution:\n def f(self, a): return [a, (1,)]",
            {"function": "Solution.f", "cases": [[[2], [2, [1]]]]},
            1.0,
        ),
        ("def f(x): print('[3]'); return x", {"function": "f", "cases": [[["é\ud800"], "é\ud800"]]}, 1.0),
        ("def f(): return 0.1 + 0.2", {"function": "f", "cases": [[[], 0.3]]}, 1.0),
        ("def f(g): return g(1)", {"unit": "assert f(lambda x: x) == 1"}, None),
        ("raise ValueError", {"unit": "assert True"}, 0.0),
    ],
)
def test_run_for_real(program: str, tests: dict[str, Any], value: float | None) -> None:
    options = {"score": "fraction", "timeout_s": 20.0, "total_timeout_s": 40.0, "float_tolerance": 1e-9}
    assert code.judge(program, tests, backend="unsafe_subprocess", **options).value == value


# ---- choice of the sandbox ------------------------------------------------------------------------------------------


def pretend(folder: Path, script: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `script` the only bwrap there is."""
    monkeypatch.setenv("PATH", str(folder))
    if script is not None:
        (folder / "bwrap").write_text(script)
        (folder / "bwrap").chmod(stat.S_IRWXU)
    bubblewrap._failure_of_a_run.cache_clear()


@pytest.fixture
def forget() -> Iterator[None]:
    yield
    bubblewrap._failure_of_a_run.cache_clear()


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("backend", ["auto", "bubblewrap"])
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "not installed"),
        ("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n", "No permissions"),
        ("#!/bin/sh\nexit 0\n", "said nothing"),
    ],
)
def test_without_bubblewrap_nothing_runs(
    backend: str, script: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, script, monkeypatch)
    with pytest.raises(RewardError, match=f"(?s){reason}.*apt-get install bubblewrap.*unsafe_subprocess") as raised:
        code.judge("open('/tmp/ran', 'w')", IO, backend=backend)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("forget")
def test_bubblewrap_that_stops_working_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "why_unusable", lambda: None)
    pretend(tmp_path, "#!/bin/sh\necho broken >&2\nexit 1\n", monkeypatch)
    judgement = code.judge(PROGRAM, IO)
    assert judgement.value is None
    assert "broken" in judgement.reason


def test_auto_is_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "why_unusable", lambda: None)
    assert isinstance(choose("auto", None), bubblewrap.Bubblewrap)


def test_unsafe_subprocess_warns_once_and_says_what_of() -> None:
    program = "from rewards.sandbox import choose\nfor _ in range(3): choose('unsafe_subprocess', None)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("is no sandbox") == 1
    assert "uses the network" in done.stderr
