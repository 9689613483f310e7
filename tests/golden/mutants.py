"""Checks that the golden tests can fail: plants one fault at a time in a copy of the project and runs them.

    python -m tests.golden.mutants [--deadline SECONDS] [--only TEXT] [TEST ...]

A mutant is caught when pytest reports a failed test, or does not end before the deadline. A fault that keeps the tests
from being collected (a syntax error, a missing name) proves nothing and is an error, like one whose old text is not
found exactly once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_TESTS = ("tests/golden", "tests/invariance")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "outputs", "wandb")

# Exit statuses of pytest.
PASSED, FAILED = 0, 1


class MutantError(Exception):
    """A mutant, or the project it is planted in, cannot be judged."""


def mutate(source: str, mutant: Mutant) -> str:
    """The source with the fault. Raises MutantError unless the old text occurs exactly once."""
    count = source.count(mutant.old)
    if count != 1:
        raise MutantError(f"rlvr/{mutant.file}: {mutant.old!r} occurs {count} times, not once ({mutant.description})")
    return source.replace(mutant.old, mutant.new)


def in_copy(copy: Path, arguments: list[str], deadline: float) -> subprocess.CompletedProcess[str]:
    """Runs Python in the copy, with its modules before any installed ones. Raises TimeoutExpired."""
    # Without bytecode files: a fault of equal length within the same second would otherwise run the cached old code.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )


def run_tests(copy: Path, tests: tuple[str, ...], deadline: float) -> subprocess.CompletedProcess[str]:
    """pytest on the given files of the copy, until the first failure."""
    return in_copy(copy, ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], deadline)


def check_sound(copy: Path, tests: tuple[str, ...], deadline: float) -> None:
    """Raises MutantError unless the copy's own modules are the ones imported and its tests pass without a fault."""
    imported = in_copy(copy, ["-c", "import rlvr.errors; print(rlvr.errors.__file__)"], deadline).stdout.strip()
    if not Path(imported).is_relative_to(copy):
        raise MutantError(f"the tests would import {imported or 'no rlvr at all'} instead of the copy")
    result = run_tests(copy, tests, deadline)
    if result.returncode != PASSED:
        raise MutantError(f"the tests fail without any fault:\n{result.stdout[-3000:]}{result.stderr[-1000:]}")


def first_failure(output: str) -> str:
    """The name of the first failed test in pytest's short summary."""
    failures = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")]
    return failures[0].rpartition("::")[2] if failures else "?"


def tests_of(mutant: Mutant, given: tuple[str, ...]) -> tuple[str, ...]:
    """The tests named on the command line, else the mutant's own, else all fast ones."""
    return given or mutant.tests or DEFAULT_TESTS


def judge(copy: Path, mutant: Mutant, tests: tuple[str, ...], deadline: float) -> tuple[bool, str]:
    """(caught, by which test), with the fault planted for the duration of the call."""
    path = copy / "rlvr" / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(mutate(source, mutant), encoding="utf-8")
    try:
        result = run_tests(copy, tests, deadline)
    except subprocess.TimeoutExpired:
        return True, "deadline"
    finally:
        path.write_text(source, encoding="utf-8")
    if result.returncode == PASSED:
        return False, ""
    if result.returncode != FAILED:
        raise MutantError(f"rlvr/{mutant.file}: the tests cannot run ({mutant.description}):\n{result.stdout[-2000:]}")
    return True, first_failure(result.stdout)


def run(mutants: tuple[Mutant, ...], given_tests: tuple[str, ...], deadline: float) -> int:
    """Judges every mutant and prints the table; returns how many were caught."""
    for mutant in mutants:
        mutate((ROOT / "rlvr" / mutant.file).read_text(encoding="utf-8"), mutant)
    width = max(len(mutant.file) for mutant in mutants)
    caught_count = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder).resolve() / "project"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        used = {test for mutant in mutants for test in tests_of(mutant, given_tests)}
        check_sound(copy, tuple(sorted(used)), deadline)
        for mutant in mutants:
            started = time.monotonic()
            caught, by = judge(copy, mutant, tests_of(mutant, given_tests), deadline)
            caught_count += caught
            verdict = "caught  " if caught else "SURVIVED"
            took = time.monotonic() - started
            print(f"{verdict}  {took:5.1f}s  {mutant.file:<{width}}  {mutant.description}  {by}".rstrip(), flush=True)
    return caught_count


def main() -> int:
    """The exit status: 0 when every mutant was caught, 1 when one survived, 2 when they could not be judged."""
    parser = argparse.ArgumentParser(description="Plant one fault at a time and check that the tests notice.")
    parser.add_argument("tests", nargs="*", help="test files or folders (default: each mutant's own)")
    parser.add_argument("--deadline", type=float, default=300.0, help="seconds for the tests of one mutant")
    parser.add_argument("--only", default="", help="only mutants whose file or description contains this text")
    options = parser.parse_args()
    mutants = tuple(mutant for mutant in MUTANTS if options.only in f"{mutant.file} {mutant.description}")
    if not mutants:
        print(f"error: no mutant matches {options.only!r}", file=sys.stderr)
        return 2
    try:
        caught = run(mutants, tuple(options.tests), options.deadline)
    except (MutantError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"caught {caught} of {len(mutants)}")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
