"""Programs judged by running them against tests.

`tests` is a mapping, or its JSON text, of one of these forms:

- `{"stdin_stdout": [{"stdin": "1 2", "stdout": "3"}, ...]}`: the program is run as a script once for each case;
- `{"function": "add", "cases": [[[1, 2], 3], ...]}`: each case has the list of arguments and the expected value. The
  name may be `Class.method`. Values are compared as JSON, so a tuple equals a list, and keys of dicts are texts;
- `{"unit": "assert add(1, 2) == 3", "names": ["add"]}`: source that must run without an exception, or a list of such
  sources, each a case. `names` (optional) says which names come from the program. Without it all of its public names do
  that are not builtins.

In the last two forms the program is a module named `solution`, so that `if __name__ == "__main__"` is false.

**Who can fake a verdict.** Output and results are compared in this process with values that never enter the sandbox:
the program can only compute them, guess them or know them by heart. Unit tests run in the sandbox in a process of their
own, which the program cannot inspect; it reports with a nonce that the program never sees, and it gets only plain data
from the program (`rewards/sandbox/_in_unit.py`). What remains possible: a helper that the tests use without importing
or defining it (`isclose` after the program's `from math import isclose`) is the program's own, so list `names` or
import what the tests use; an object that is not plain data can claim any attribute, length or item; the program sees
the arguments of each call, hence can give constant answers to the cases that it recognises. Tests cannot hand functions
to the program, compare its objects by `==`, or use `isinstance` with its classes: the first makes the completion
unscorable, the others fail.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards._code_cases import Case, Outcome, parse_tests
from rewards._item import Judgement, Status, graded, item_reward, no_answer, unscorable
from rewards._text import tagged
from rewards.sandbox import Limits, Sandbox, SandboxFailure, choose
from rlvr.errors import RewardError

FENCES = ("```", "~~~")
PYTHON_LABELS = ("python", "python3", "py")
PROGRAM_CHARACTERS = 1 << 20
LEAST_MEMORY_MB = 64  # below it the interpreter itself does not start, which would look like a wrong program


@item_reward
def code(
    text: str,
    tests: str | Mapping[str, Any],
    *,
    backend: str = "auto",
    timeout_s: float = 2.0,
    total_timeout_s: float = 4.0,
    memory_mb: int = 512,
    score: str = "all",
    language: str = "python",
    server_url: str | None = None,
    float_tolerance: float | None = None,
) -> Judgement:
    """1.0 where the program passes all tests, or with `score: fraction` the share of the tests that it passes.

    The program is the last fenced block labelled python, or else the last without a label, of the last
    `<answer>...</answer>`, or without one of the text after the last `</think>`; without a fenced block it is all of
    that. Only the standard library is there to import, except on a server that has more.

    `backend` is where it runs: `bubblewrap`, `sandbox_fusion` (with `server_url`), `unsafe_subprocess`, or `auto`,
    which is bubblewrap or an error (docs/sandbox.md). `timeout_s` and `memory_mb` hold for each test, `total_timeout_s`
    for all tests of a completion; keep it below `rewards.timeout_s` of the recipe, which ends a judgement without a
    verdict. White space at the end of lines and of the output does not count; `float_tolerance` compares numbers within
    an absolute or relative tolerance. A program that crashes, loops or takes too much gets 0; tests that are malformed,
    or a sandbox that fails, give no verdict. With `score: all` the first test that fails is the last that runs.
    """
    _check_options(memory_mb, score, language)
    for name, seconds in (("timeout_s", timeout_s), ("total_timeout_s", total_timeout_s)):
        if not _is_number(seconds) or seconds <= 0:
            raise RewardError(f"reward 'code': `{name}` is {seconds!r}; write a number of seconds above 0")
    if float_tolerance is not None and (not _is_number(float_tolerance) or float_tolerance < 0):
        raise RewardError(f"reward 'code': `float_tolerance` is {float_tolerance!r}; write a number of at least 0")
    try:
        cases = parse_tests(tests)
    except ValueError as error:
        return unscorable(str(error))
    program = program_in(text)
    if not program:
        return no_answer("there is no program")
    if len(program) > PROGRAM_CHARACTERS:
        return Judgement(0.0, Status.WRONG, "the program is too long")
    if "\0" in program or any("\ud800" <= each <= "\udfff" for each in program):
        return Judgement(0.0, Status.WRONG, "the program has characters that are no source text")
    sandbox = choose(backend, server_url)
    examination = Examination(program, sandbox, float(timeout_s), memory_mb, float_tolerance)
    try:
        return examination.judge(cases, float(total_timeout_s), stop_early=score == "all")
    except SandboxFailure as failure:
        return unscorable(str(failure))


def program_in(text: str) -> str:
    """The program in a completion, empty where there is none."""
    answer = tagged(text, "answer")
    if answer is None:
        answer = text.rpartition("</think>")[2]
    blocks = _blocks(answer)
    labelled = [body for label, body in blocks if label in PYTHON_LABELS]
    others = [body for label, body in blocks if not label]
    if blocks and not (labelled or others):
        return ""
    return (labelled or others or [answer])[-1].strip("\n") if answer.strip() else ""


def _blocks(text: str) -> list[tuple[str, str]]:
    """Label and content of each closed fenced block. One pass over the lines, whatever the text."""
    found, fence, label, lines = [], "", "", list[str]()
    for line in text.split("\n"):
        bare = line.strip()
        if fence:
            if bare == fence:
                found.append((label, "\n".join(lines)))
                fence = ""
            else:
                lines.append(line)
        elif bare.startswith(FENCES):
            rest = bare.lstrip(bare[0])
            fence, lines = bare[: len(bare) - len(rest)], []
            label = (rest.split() or [""])[0].lower()
    return found


@dataclass(frozen=True)
class Examination:
    """A program, and what holds for each of its tests."""

    program: str
    sandbox: Sandbox
    timeout_s: float
    memory_mb: int
    tolerance: float | None

    def judge(self, cases: Sequence[Case], total_timeout_s: float, *, stop_early: bool) -> Judgement:
        """The share of the cases that pass, 0 at the first failure with `stop_early`. Raises SandboxFailure."""
        deadline = time.monotonic() + total_timeout_s
        passed, first, reason = 0, Outcome.PASSED, ""
        for index, case in enumerate(cases):
            outcome, why = self._outcome(case, deadline - time.monotonic())
            passed += outcome is Outcome.PASSED
            if outcome is not Outcome.PASSED and first is Outcome.PASSED:
                first, reason = outcome, f"test {index + 1} of {len(cases)}: {why}"
                if stop_early:
                    passed = 0
                    break
        if passed == 0 and first is Outcome.TIMED_OUT:
            return Judgement(0.0, Status.TIMEOUT, reason)
        verdict = graded(passed / len(cases))
        return Judgement(verdict.value, verdict.status, reason)

    def _outcome(self, case: Case, seconds_left: float) -> tuple[Outcome, str]:
        if seconds_left <= 0:
            return Outcome.TIMED_OUT, "the tests before it took all the time"
        limits = Limits(seconds=min(self.timeout_s, seconds_left), memory_mb=self.memory_mb)
        return case.run(self.program, self.sandbox, limits, self.tolerance)


def _check_options(memory_mb: int, score: str, language: str) -> None:
    """Raises RewardError for an option that has no meaning."""
    if score not in ("all", "fraction"):
        raise RewardError(f"reward 'code': `score` is {score!r}; write all or fraction")
    if language != "python":
        raise RewardError(f"reward 'code': `language` is {language!r}; only python is supported")
    if not isinstance(memory_mb, int) or memory_mb < LEAST_MEMORY_MB:
        raise RewardError(f"reward 'code': `memory_mb` is {memory_mb!r}; write an integer from {LEAST_MEMORY_MB} on")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
