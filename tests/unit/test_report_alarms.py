"""Every alarm of the report on curves that must set it off, and on their neighbours that must not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlvr.config.schema import Recipe
from rlvr.config.trainer_defaults import OWNED, trl_fields
from rlvr.reporting.report.alarms import ALARMS, Alarm, alarms_of
from rlvr.reporting.report.reading import read_runs
from tests.report_runs import evaluated, write_run

Curves = Mapping[str, Callable[[float], Any]]
UP = {"before": [evaluated("test", pass_at_1=(0.3, 0.28, 0.32), pass_at_8=(0.8, 0.78, 0.82))]}
NARROWED = [evaluated("test", pass_at_1=(0.5, 0.48, 0.52), pass_at_8=(0.7, 0.68, 0.72))]
WIDENED = [evaluated("test", pass_at_1=(0.5, 0.48, 0.52), pass_at_8=(0.85, 0.83, 0.87))]
UNCLEAR = [evaluated("test", pass_at_1=(0.5, 0.48, 0.52), pass_at_8=(0.79, 0.77, 0.81))]
FELL = [evaluated("test", pass_at_1=(0.2, 0.18, 0.22))]
FELL_A_LITTLE = [evaluated("test", pass_at_1=(0.29, 0.27, 0.31))]
FELL_IN_VALIDATION = [evaluated("test", role="validation", pass_at_1=(0.2, 0.18, 0.22))]


def flat(value: float) -> Callable[[float], float]:
    return lambda share: value


def ramp(first: float, last: float) -> Callable[[float], float]:
    return lambda share: first + (last - first) * share


def at_end(usual: float, peak: float) -> Callable[[float], float]:
    return lambda share: peak if share == 1.0 else usual


FLAT_PASS = {"outcome/pass_rate": flat(0.4)}

# (alarm, curves or evaluations that set it off)
SETS_OFF: tuple[tuple[str, Curves, list[dict[str, Any]] | None], ...] = (
    ("entropy_collapse", {"entropy/mean_token": ramp(0.6, 0.001)}, None),
    ("length_hacking", {"completions/mean_length": ramp(100, 200), **FLAT_PASS}, None),
    ("format_only", {"reward/form/mean": ramp(0.2, 0.9), **FLAT_PASS}, None),
    ("sampler_mismatch", {"sampler/mismatch_kl": flat(0.05)}, None),
    ("sampler_mismatch", {"sampler/ess": flat(0.5)}, None),
    ("all_solved", {"groups/solved_frac": ramp(0.1, 0.95)}, None),
    ("all_unsolved", {"groups/unsolved_frac": flat(0.95)}, None),
    ("unscorable", {"outcome/unscorable_frac": flat(0.1)}, None),
    ("unscorable", {"outcome/unscorable_frac": ramp(0.2, 0.0)}, None),
    ("timeouts", {"verify/timeout_frac": ramp(0.0, 0.1)}, None),
    ("truncation", {"completions/truncated_frac": ramp(0.0, 0.5)}, None),
    ("clipping", {"clip/low_frac": flat(0.15), "clip/high_frac": flat(0.15)}, None),
    ("gradient_spikes", {"grad_norm": at_end(0.4, 8.0)}, None),
    ("not_finite", {"grad_norm": at_end(0.4, None)}, None),  # type: ignore[arg-type]
    ("not_finite", {"watch/skipped_steps": ramp(0, 3)}, None),
    ("training_only", {}, FELL),
    ("narrowing", {}, NARROWED),
)
DOES_NOT: tuple[tuple[str, Curves, list[dict[str, Any]] | None], ...] = (
    ("entropy_collapse", {"entropy/mean_token": ramp(0.6, 0.2)}, None),
    ("entropy_collapse", {"entropy/mean_token": ramp(0.05, 0.03)}, None),  # low all along
    ("length_hacking", {"completions/mean_length": ramp(100, 200)}, None),  # the pass rate rises too
    ("length_hacking", {"completions/mean_length": ramp(100, 130), **FLAT_PASS}, None),
    ("format_only", {"reward/form/mean": ramp(0.2, 0.9)}, None),
    ("format_only", {"reward/exact/mean": ramp(0.2, 0.9), **FLAT_PASS}, None),  # the verifier's own
    ("sampler_mismatch", {"sampler/mismatch_kl": flat(0.001), "sampler/ess": flat(0.99)}, None),
    ("all_solved", {"groups/solved_frac": ramp(0.1, 0.7)}, None),
    ("all_unsolved", {"groups/unsolved_frac": ramp(0.95, 0.3)}, None),
    ("unscorable", {"outcome/unscorable_frac": flat(0.03)}, None),
    ("timeouts", {"verify/timeout_frac": flat(0.01)}, None),
    ("truncation", {"completions/truncated_frac": ramp(0.5, 0.05)}, None),
    ("clipping", {"clip/low_frac": flat(0.05), "clip/high_frac": flat(0.1)}, None),
    ("gradient_spikes", {"grad_norm": at_end(0.4, 2.0)}, None),
    ("gradient_spikes", {"grad_norm": at_end(0.001, 0.5)}, None),  # far above the median, and still small
    ("not_finite", {"kl/k1_old": at_end(0.4, None)}, None),  # type: ignore[arg-type]
    ("training_only", {}, FELL_A_LITTLE),
    ("training_only", {}, FELL_IN_VALIDATION),
    ("training_only", FLAT_PASS, FELL),
    ("narrowing", {}, WIDENED),
    ("narrowing", {}, UNCLEAR),
    ("narrowing", {}, FELL),
)


def found(folder: Path, curves: Curves, after: list[dict[str, Any]] | None) -> dict[str, Alarm]:
    evaluations = None if after is None else {**UP, "after": after}
    (run,) = read_runs([write_run(folder, metrics=curves, evaluations=evaluations)])
    return alarms_of(run)


@pytest.mark.parametrize(("name", "curves", "after"), SETS_OFF)
def test_pattern_is_found_and_no_other(
    tmp_path: Path, name: str, curves: Curves, after: list[dict[str, Any]] | None
) -> None:
    alarms = found(tmp_path, curves, after)
    assert list(alarms) == [name]
    assert alarms[name].tries


@pytest.mark.parametrize(("name", "curves", "after"), DOES_NOT)
def test_neighbour_is_no_alarm(tmp_path: Path, name: str, curves: Curves, after: list[dict[str, Any]] | None) -> None:
    assert name not in found(tmp_path, curves, after)


def test_a_healthy_run_and_a_very_short_one_have_no_alarm(tmp_path: Path) -> None:
    assert found(tmp_path / "healthy", {}, WIDENED) == {}
    (short,) = read_runs([write_run(tmp_path / "short", num_steps=9, metrics={"groups/unsolved_frac": flat(1.0)})])
    assert alarms_of(short) == {}


def test_every_alarm_is_tried_both_ways() -> None:
    assert {name for name, _, _ in SETS_OFF} == {name for name, _, _ in DOES_NOT} == set(ALARMS)


def test_evidence_has_the_numbers_and_the_steps(tmp_path: Path) -> None:
    alarms = found(tmp_path, {"entropy/mean_token": ramp(0.6, 0.0), "grad_norm": at_end(0.4, 8.0)}, None)
    assert list(alarms) == ["entropy_collapse", "gradient_spikes"]  # a problem comes before what is to be watched
    collapse = alarms["entropy_collapse"]
    assert collapse.severity == "problem"
    assert "from 0.577 to 0.0231 nats (steps 1-4 to 37-40), while the pass rate is 0.68" in collapse.evidence
    assert "Once above ten times the median of 0.4, at step 40; the largest is 8 at step 40." in (
        alarms["gradient_spikes"].evidence
    )


def test_low_entropy_of_a_policy_that_solves_nearly_all_is_only_to_be_watched(tmp_path: Path) -> None:
    curves = {"entropy/mean_token": ramp(0.6, 0.0), "outcome/pass_rate": ramp(0.5, 1.0)}
    assert found(tmp_path, curves, None)["entropy_collapse"].severity == "watch"


def test_many_steps_are_counted(tmp_path: Path) -> None:
    alarms = found(tmp_path, {"loss": lambda share: None if share > 0.5 else 0.1}, None)
    assert alarms["not_finite"].evidence == "Loss has no finite value at steps 21, 22, 23, 24, 25 and 15 more."


@pytest.mark.parametrize("name", ALARMS)
def test_what_to_try_are_keys_of_recipes(tmp_path: Path, name: str) -> None:
    curves, after = next((curves, after) for each, curves, after in SETS_OFF if each == name)
    for key in found(tmp_path, curves, after)[name].tries:
        section, _, rest = key.partition(".")
        assert section in Recipe.model_fields, key
        if section == "trainer":
            assert rest in trl_fields(), key
            assert rest not in OWNED, key
            continue
        model: Any = Recipe.model_fields[section].annotation
        assert not rest or rest in model.model_fields, key
