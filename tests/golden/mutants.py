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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_TESTS = ("tests/golden", "tests/invariance")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "runs", "outputs", "wandb")

# Exit statuses of pytest.
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which occurs exactly once in `file` (under rlvr/), becomes `new`."""

    file: str
    old: str
    new: str
    description: str
    tests: tuple[str, ...] = ()


ADVANTAGE, POLICY = "objectives/advantage.py", "objectives/policy_loss.py"
KL, AGGREGATION = "objectives/kl.py", "objectives/aggregation.py"
STATS, ESTIMATORS = "ops/token_stats.py", "evaluation/estimators.py"

# (file under rlvr/, old text, new text, description)
FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (POLICY, "return -torch.minimum", "return torch.minimum", "sign of the loss"),
    (POLICY, "torch.minimum(", "torch.maximum(", "max instead of min"),
    (POLICY, "logprobs - old_logprobs.detach()", "old_logprobs.detach() - logprobs", "ratio inverted"),
    (POLICY, "torch.exp(logprobs - old_logprobs.detach())", "1.0 + logprobs - old_logprobs.detach()", "no exponential"),
    (POLICY, "clamp(1.0 - clip_low, 1.0 + clip_high)", "clamp(1.0 - clip_high, 1.0 + clip_low)", "bounds swapped"),
    (POLICY, "clamp(1.0 - clip_low, 1.0 + clip_high)", "clamp(1.0 - clip_low, 1.0 + clip_low)", "clip_high ignored"),
    (POLICY, "clamp(1.0 - clip_low, 1.0 + clip_high)", "clamp(max=1.0 + clip_high)", "no lower bound"),
    (POLICY, "clamp(1.0 - clip_low, 1.0 + clip_high)", "clamp(min=1.0 - clip_low)", "no upper bound"),
    (POLICY, "clipped * advantages", "ratio * advantages", "no clipping"),
    (POLICY, "(ratio * advantages", "(clipped * advantages", "clipped term only"),
    (POLICY, "exp(logprobs - old_logprobs.detach())", "exp((logprobs - old_logprobs).detach())", "gradient detached"),
    (POLICY, "logprobs - old_logprobs.detach()", "logprobs - old_logprobs", "gradient through old_logprobs"),
    (POLICY, "(advantages < 0)", "(advantages > 0)", "low clip fraction with the wrong sign"),
    (POLICY, "(ratio > 1.0 + clip_high)", "(ratio > 1.0 + clip_low)", "high clip fraction at the wrong bound"),
    (KL, "ref_logprobs.detach() - logprobs", "logprobs - ref_logprobs.detach()", "direction of the KL"),
    (KL, "torch.exp(difference) - difference - 1.0", "1.0 + difference - torch.exp(difference)", "sign of the KL"),
    (KL, "torch.exp(difference) - difference - 1.0", "-difference", "k1 instead of k3"),
    (KL, "torch.exp(difference) - difference - 1.0", "0.5 * difference.square()", "k2 instead of k3"),
    (KL, "- difference - 1.0", "- difference", "k3 without the minus one"),
    (KL, "ref_logprobs.detach() - logprobs", "ref_logprobs.detach() - logprobs.detach()", "KL without gradient"),
    (AGGREGATION, "torch.where(loss_mask, values, 0.0), loss", "values, loss", "padding unmasked"),
    (AGGREGATION, "torch.where(loss_mask, values, 0.0)", "values * loss_mask", "NaN at padding leaks"),
    (AGGREGATION, "max(denominator.num_loss_tokens, 1.0)", "loss_mask.sum().clamp(min=1)", "local token count"),
    (AGGREGATION, "max(denominator.num_loss_tokens, 1.0)", "values.numel()", "padded token count"),
    (
        AGGREGATION,
        "loss_mask.sum(dim=1).clamp(min=1)",
        "loss_mask.shape[1]",
        "sequence mean divides by the padded width",
    ),
    (AGGREGATION, "loss_mask.sum(dim=1).clamp(min=1)", "loss_mask.sum(dim=1)", "empty row divides by zero"),
    (AGGREGATION, "values.sum(dim=1) / lengths", "values.sum(dim=1)", "sequence mean does not divide by the length"),
    (AGGREGATION, "max(denominator.num_sequences", "max(denominator.num_rows", "sequence mean counts empty rows"),
    (AGGREGATION, "max(denominator.num_sequences", "max(loss_mask.any(dim=1).sum()", "local sequence count"),
    (AGGREGATION, "* denominator.max_completion_length", "* values.shape[1]", "constant uses the padded width"),
    (AGGREGATION, "denominator.num_rows *", "denominator.num_sequences *", "constant leaves out empty rows"),
    (AGGREGATION, "denominator.num_rows *", "values.shape[0] *", "constant counts local rows"),
    (AGGREGATION, '"token_mean": _token_mean', '"token_mean": _sequence_mean', "token_mean is the sequence mean"),
    (ADVANTAGE, "(rewards - mean) / (std", "rewards / (std", "group advantage uncentred"),
    (ADVANTAGE, "torch.where(informative, rewards - mean, 0.0)", "torch.where(informative, rewards, 0.0)", "uncentred"),
    (ADVANTAGE, "total(values) / count.clamp(min=1.0)", "rewards.nanmean().expand_as(rewards)", "mean of the batch"),
    (ADVANTAGE, "torch.unique(group_ids", "torch.unique_consecutive(group_ids", "only neighbours form a group"),
    (ADVANTAGE, "(count - ddof)", "count", "ddof ignored as 0"),
    (ADVANTAGE, "(count - ddof)", "(count - 1)", "ddof ignored as 1"),
    (ADVANTAGE, ".clamp(min=1.0)).sqrt()", ".clamp(min=1.0))", "variance instead of std"),
    (ADVANTAGE, "(std + eps)", "std.clamp(min=eps)", "eps as a floor"),
    (ADVANTAGE, "(std + eps)", "(std.square() + eps).sqrt()", "eps under the root"),
    (ADVANTAGE, "(std + eps)", "(rewards[~rewards.isnan()].std() + eps)", "std of the batch"),
    (
        ADVANTAGE,
        "total(scorable.to(rewards.dtype))",
        "total(torch.ones_like(rewards))",
        "unscorable counted in the mean",
    ),
    (ADVANTAGE, "torch.where(scorable, rewards - mean, 0.0)", "values - mean", "unscorable counted in the std"),
    (ADVANTAGE, "informative = scorable & ", "informative = ", "unscorable gets NaN"),
    (ADVANTAGE, " & (highest > lowest)", "", "guard of equal rewards removed"),
    (ADVANTAGE, "(highest > lowest)", "(highest > lowest + 1e-3)", "nearly equal rewards zeroed"),
    (ADVANTAGE, "(count >= 2)", "(count >= 3)", "pairs have no signal"),
    (STATS, "torch.float32)) / temperature", "torch.float32)) * temperature", "temperature multiplied"),
    (STATS, "torch.float32)) / temperature", "torch.float32))", "temperature ignored"),
    (STATS, "entropy = -(", "entropy = (", "sign of the entropy"),
    (STATS, "(log_probs.exp() * log_probs).sum(dim=-1)", "log_probs.mean(dim=-1)", "entropy unweighted"),
    (STATS, "log_probs.exp() * log_probs", "log_probs.exp().detach() * log_probs", "entropy without gradient"),
    (STATS, "torch.log_softmax(logits, dim=-1)", "torch.log_softmax(logits.detach(), dim=-1)", "gradient detached"),
    (STATS, "torch.log_softmax(logits, dim=-1)", "logits - logits.exp().sum(-1, keepdim=True).log()", "overflow"),
    (STATS, "torch.log_softmax(logits, dim=-1)", "torch.log_softmax(logits, dim=0)", "softmax over the tokens"),
    (STATS, "linear(hidden, weight, bias)", "linear(hidden, weight)", "bias dropped"),
    (STATS, "linear(hidden, weight, bias)", "linear(hidden, weight.detach(), bias)", "head without gradient"),
    (STATS, "targets.unsqueeze(-1)", "targets.roll(1).unsqueeze(-1)", "targets shifted by one"),
    (STATS, "torch.cat(logprobs)", "torch.cat(logprobs[::-1])", "tiles in the wrong order"),
    (STATS, "hidden.shape[0] <= tile_tokens", "hidden.shape[0] >= tile_tokens", "tiles not used"),
    (ESTIMATORS, "return 1.0 - math.comb", "return math.comb", "pass@k without the complement"),
    (ESTIMATORS, "(num_samples - num_correct, k)", "(num_samples - num_correct, k - 1)", "pass@k off by one"),
    (ESTIMATORS, "/ math.comb(num_samples, k)", "/ math.comb(num_samples + 1, k)", "pass@k of one sample more"),
    (
        ESTIMATORS,
        "math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)",
        "(1.0 - num_correct / num_samples) ** k",
        "pass@k biased",
    ),
    (ESTIMATORS, "tail = (1.0 - level) / 2.0", "tail = 1.0 - level", "bootstrap level one-sided"),
    (ESTIMATORS, "level: float = 0.95", "level: float = 0.9", "bootstrap default level"),
    (ESTIMATORS, "default_rng(seed)", "default_rng(0)", "bootstrap seed ignored"),
    (ESTIMATORS, "default_rng(seed)", "default_rng()", "bootstrap not deterministic"),
    (ESTIMATORS, "size=(num_resamples, len(sample))", "size=(num_resamples, 2 * len(sample))", "resamples too large"),
    (ESTIMATORS, "integers(0, len(sample)", "integers(0, max(len(sample) - 1, 1)", "last prompt never drawn"),
    (ESTIMATORS, "sample[picks].mean(axis=1)", "np.median(sample[picks], axis=1)", "bootstrap of the median"),
    (ESTIMATORS, "[tail, 1.0 - tail]", "[1.0 - tail, tail]", "bootstrap ends swapped"),
)
LAWS = "tests/invariance/test_objective_laws.py"
TESTS_OF: dict[str, tuple[str, ...]] = {
    ADVANTAGE: ("tests/golden/test_advantage.py", LAWS),
    POLICY: ("tests/golden/test_objective.py", LAWS),
    KL: ("tests/golden/test_objective.py", LAWS),
    AGGREGATION: ("tests/golden/test_objective.py", LAWS),
    STATS: ("tests/golden/test_token_stats.py",),
    ESTIMATORS: ("tests/golden/test_estimators.py",),
}
MUTANTS = tuple(Mutant(*fault, tests=TESTS_OF[fault[0]]) for fault in FAULTS)


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
