"""The tests of a programming task, how each is run, and what counts as passing it."""

import ast
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from math import isclose, isfinite
from pathlib import Path
from typing import Any, Protocol

from rewards.sandbox.interface import Limits, Ran, Sandbox, SandboxFailure

# What is in the parent is compared as data; a result that does not read as JSON is a wrong one.
UNREADABLE = (ValueError, RecursionError)
HARNESSES = Path(__file__).parent / "sandbox"


class Outcome(Enum):
    """What one test says of a program."""

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"


class Case(Protocol):
    """One test."""

    def run(self, program: str, sandbox: Sandbox, limits: Limits, tolerance: float | None) -> tuple[Outcome, str]:
        """The outcome and, unless it passed, the reason. Raises SandboxFailure."""
        ...


@dataclass(frozen=True)
class StdinCase:
    """The program, run as a script with this input, prints this output and exits with 0."""

    stdin: str
    stdout: str

    def run(self, program: str, sandbox: Sandbox, limits: Limits, tolerance: float | None) -> tuple[Outcome, str]:
        room = max(limits.output_bytes, 2 * len(self.stdout.encode()))
        ran = sandbox.run(program, self.stdin.encode(), _with_room(limits, room))
        failed = _failure(ran)
        if failed:
            return failed
        # Bytes that are no UTF-8 become characters that no expected output has.
        printed = ran.stdout.decode("utf-8", errors="surrogateescape")
        if same_output(printed, self.stdout, tolerance):
            return Outcome.PASSED, ""
        return Outcome.FAILED, "another output than expected"


@dataclass(frozen=True)
class FunctionCase:
    """The function returns this value, as JSON, for these arguments. The expected value stays out of the sandbox."""

    function: str
    args: Sequence[Any]
    expected: Any

    def run(self, program: str, sandbox: Sandbox, limits: Limits, tolerance: float | None) -> tuple[Outcome, str]:
        task = {"program": program, "function": self.function, "args": self.args}
        ran, text = _in_harness("_in_function.py", task, sandbox, limits)
        failed = _failure(ran)
        if failed:
            return failed
        try:
            value = json.loads(text or "")
        except UNREADABLE:
            return Outcome.FAILED, "no result"
        passed = same_value(value, self.expected, tolerance)
        return (Outcome.PASSED, "") if passed else (Outcome.FAILED, "another value than expected")


@dataclass(frozen=True)
class UnitCase:
    """This source runs without an exception, the program's names being defined in it."""

    source: str
    names: Sequence[str] | None = None

    def run(self, program: str, sandbox: Sandbox, limits: Limits, tolerance: float | None) -> tuple[Outcome, str]:
        task = {"program": program, "tests": self.source, "names": self.names}
        ran, text = _in_harness("_in_unit.py", task, sandbox, limits)
        verdict = json.loads(text) if text is not None else {}  # written by the process that has the nonce
        if "failure" in verdict:
            raise SandboxFailure(verdict["failure"])
        failed = _failure(ran)
        if failed:
            return failed
        if verdict == {"passed": "all"}:
            return Outcome.PASSED, ""
        return Outcome.FAILED, "the tests did not come to their end"


def parse_tests(tests: str | Mapping[str, Any]) -> list[Case]:
    """The cases in a column `tests`. Raises ValueError that says what is wrong with it."""
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except RecursionError as error:
            raise ValueError("`tests` is nested too deep") from error
    if not isinstance(tests, Mapping):
        raise ValueError("`tests` is not an object")
    given = {key: value for key, value in tests.items() if value is not None}  # absent, in a table with all columns
    keys = set(given)
    if keys == {"stdin_stdout"}:
        cases: list[Case] = [_stdin_case(each) for each in _list(given["stdin_stdout"], "stdin_stdout")]
    elif keys == {"function", "cases"}:
        cases = [_function_case(given["function"], each) for each in _list(given["cases"], "cases")]
    elif "unit" in keys and keys <= {"unit", "names"}:
        sources = [given["unit"]] if isinstance(given["unit"], str) else _list(given["unit"], "unit")
        cases = [_unit_case(each, given.get("names")) for each in sources]
    else:
        forms = "`stdin_stdout`, `function` with `cases`, or `unit`"
        raise ValueError(f"`tests` must have {forms}, and has {', '.join(sorted(map(str, keys))) or 'nothing'}")
    if not cases:
        raise ValueError("`tests` has no case")
    return cases


def same_output(printed: str, expected: str, tolerance: float | None) -> bool:
    """Equal but for white space at the end of lines and of the text; with a tolerance, numbers are equal within it.

    The tolerance is absolute or relative, whichever is more generous, and then words are compared: spaces between them
    do not count.
    """
    lines, wanted = _lines(printed), _lines(expected)
    if lines == wanted:
        return True
    if tolerance is None or len(lines) != len(wanted):
        return False
    words = [line.split() for line in lines]
    wanted_words = [line.split() for line in wanted]
    return all(
        len(line) == len(other) and all(_same_word(a, b, tolerance) for a, b in zip(line, other, strict=True))
        for line, other in zip(words, wanted_words, strict=True)
    )


def same_value(value: Any, expected: Any, tolerance: float | None) -> bool:
    """Equal as JSON data: true is not 1, 1 is 1.0, floats are equal within the tolerance if there is one."""
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, int | float) and isinstance(expected, int | float):
        if value == expected or tolerance is None:
            return value == expected
        return isinstance(value, float) | isinstance(expected, float) and _close(value, expected, tolerance)
    if isinstance(value, list) and isinstance(expected, list | tuple):
        pairs = zip(value, expected, strict=False)
        return len(value) == len(expected) and all(same_value(a, b, tolerance) for a, b in pairs)
    if isinstance(value, dict) and isinstance(expected, Mapping):
        return value.keys() == expected.keys() and all(same_value(value[k], expected[k], tolerance) for k in expected)
    return type(value) is type(expected) and bool(value == expected)


def _in_harness(name: str, task: dict[str, Any], sandbox: Sandbox, limits: Limits) -> tuple[Ran, str | None]:
    """How the harness ended, and what it wrote between two copies of a nonce drawn for this run."""
    nonce = secrets.token_hex(32)
    ran = sandbox.run(_harness(name), json.dumps({**task, "nonce": nonce}).encode(), limits)
    parts = ran.stdout.decode("utf-8", errors="replace").split(nonce)
    return ran, parts[1] if len(parts) == 3 else None


@cache
def _harness(name: str) -> str:
    return (HARNESSES / name).read_text(encoding="utf-8")


def _with_room(limits: Limits, output_bytes: int) -> Limits:
    return Limits(**{**vars(limits), "output_bytes": output_bytes})


def _failure(ran: Ran) -> tuple[Outcome, str] | None:
    if ran.timed_out:
        return Outcome.TIMED_OUT, "took too long"
    if ran.too_much_output:
        return Outcome.FAILED, "printed too much"
    if ran.status != 0:
        last_line = ran.stderr.splitlines()[-1:]
        return Outcome.FAILED, f"ended with {ran.status}{': ' if last_line else ''}{''.join(last_line)[:200]}"
    return None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_word(word: str, expected: str, tolerance: float) -> bool:
    if word == expected:
        return True
    try:
        return _close(float(word), float(expected), tolerance)
    except ValueError:
        return False


def _close(value: float, expected: float, tolerance: float) -> bool:
    try:
        finite = isfinite(value) and isfinite(expected)
    except OverflowError:  # an integer that no float can hold
        return False
    return finite and isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"`{name}` in `tests` is not a list")
    return list(value)


def _stdin_case(case: Any) -> StdinCase:
    stdin, stdout = (case.get("stdin"), case.get("stdout")) if isinstance(case, Mapping) else (None, None)
    if not isinstance(stdin, str) or not isinstance(stdout, str):
        raise ValueError("a case of `stdin_stdout` is not an object with the texts `stdin` and `stdout`")
    (stdin + stdout).encode()  # UnicodeEncodeError is a ValueError
    return StdinCase(stdin, stdout)


def _function_case(function: Any, case: Any) -> FunctionCase:
    if not isinstance(function, str) or not all(part.isidentifier() for part in function.split(".")):
        raise ValueError("`function` in `tests` is not the name of a function")
    if not isinstance(case, Sequence) or isinstance(case, str) or len(case) != 2:
        raise ValueError("a case of `cases` is not a pair of arguments and expected value")
    args, expected = case
    try:
        # What is not plain data, or not the same after a way through JSON, could never be equal to a result.
        plain = json.loads(json.dumps([_list(args, "cases"), expected]))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"a case of `cases` is not plain data: {error}") from error
    return FunctionCase(function, plain[0], plain[1])


def _unit_case(source: Any, names: Any) -> UnitCase:
    if not isinstance(source, str):
        raise ValueError("`unit` in `tests` is not source text")
    if names is not None and not all(isinstance(each, str) for each in _list(names, "names")):
        raise ValueError("`names` in `tests` is not a list of names")
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`unit` in `tests` is not Python: {error}") from error
    if not statements:
        raise ValueError("`unit` in `tests` tests nothing")
    return UnitCase(source, None if names is None else tuple(names))
