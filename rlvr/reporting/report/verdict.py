"""Before and after on held-out prompts: numbers, intervals, and what they allow to be said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr.evaluation.comparison import Comparison
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.outcomes import difference_by_prompt
from rlvr.reporting.report.records import Run, SetResult
from rlvr.reporting.report.trends import trend

LEVEL = 0.05  # of p-values
SEED = 0  # of the intervals, so that a report comes out the same each time


@dataclass(frozen=True)
class Change:
    """One metric of one set, at the first and the last evaluation.

    With a `p_value` the difference is over the prompts that both have verdicts for, with its paired interval.
    Without, as for runs that kept no outcomes by prompt, it is bounded as if the two were measured on different
    prompts, by adding the squared half widths of the intervals: the true interval is narrower.
    """

    set_name: str
    is_test: bool
    metric: str
    before: Estimate
    after: Estimate
    difference: Estimate
    p_value: float | None

    @property
    def k(self) -> int | None:
        """Of pass@k; None for another metric."""
        name, _, number = self.metric.partition("@")
        return int(number) if name == "pass" and number.isdecimal() else None

    @property
    def word(self) -> str:
        if self.p_value is not None and self.p_value >= LEVEL:  # an interval of a handful of prompts says nothing
            return "not told apart"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not told apart"


def change_of(run: Run) -> list[Change]:
    """Every metric that the first and the last evaluation share; none where there are not two."""
    if run.ends is None:
        return []
    first, last = run.ends
    begun = {each.name: each for each in first.results}
    return [
        _change(begun[result.name], result, metric)
        for result in last.results
        if result.name in begun
        for metric in result.estimates
        if metric in begun[result.name].estimates
    ]


def _change(first: SetResult, last: SetResult, metric: str) -> Change:
    before, after = first.estimates[metric], last.estimates[metric]
    ends = (last.name, last.is_test, metric, before, after)
    paired = paired_difference(last, first, metric)
    if paired is not None:
        return Change(*ends, paired.difference, paired.p_value)
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    middle = after.value - before.value
    return Change(*ends, Estimate(middle, middle - down, middle + up), None)


def paired_difference(ours: SetResult, theirs: SetResult, metric: str) -> Comparison | None:
    """Ours minus theirs, prompt by prompt; None where they are not of the same prompts or kept no outcomes."""
    if ours.outcomes is None or theirs.outcomes is None:
        return None
    return difference_by_prompt(ours.outcomes, theirs.outcomes, metric, seed=SEED)


def in_words(run: Run) -> list[str]:
    """The verdict, one sentence per test set; of the training prompts where nothing was held out."""
    sentences = [_sentence(each) for each in change_of(run) if each.is_test and each.metric == "pass@1"]
    if sentences:
        return sentences
    passed = trend(run, "outcome/pass_rate")
    without = "No test set was evaluated at both ends"
    if passed is None:
        return [f"{without}, and too few steps were logged to say how the pass rate moved."]
    return [
        f"{without}. On training prompts the pass rate went from {passed.early:.3f} (steps {passed.early_steps[0]}-"
        f"{passed.early_steps[1]}) to {passed.late:.3f} (steps {passed.late_steps[0]}-{passed.late_steps[1]}), which"
        " does not say what it is on others."
    ]


def _sentence(change: Change) -> str:
    words = {
        "better": f"pass@1 on {change.set_name} rose",
        "worse": f"pass@1 on {change.set_name} fell",
        "not told apart": f"These prompts do not tell the policies apart: pass@1 on {change.set_name} went",
    }[change.word]
    return (
        f"{words} from {interval(change.before)} to {interval(change.after)}, a difference of"
        f" {signed(change.difference)}{p_value_in_words(change.p_value)}."
    )


def signed(difference: Estimate) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def p_value_in_words(p_value: float | None) -> str:
    """To be put after a difference; nothing where there is no test."""
    if p_value is None:
        return ""
    return ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.2g}"


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def status_of(run: Run) -> str:
    """How far the run came."""
    planned = run.planned_steps
    of = f" of {planned}" if planned is not None else ""
    if run.is_finished and planned is not None and run.setting("evaluation.early_stop") and run.last_step < planned:
        return f"stopped after {run.last_step} of {planned} steps, as validation stood still"
    if run.is_finished:
        return f"finished after {run.last_step} steps"
    if not run.steps:
        return "ended, or was seen, before its first step was logged"
    return f"not finished: step {run.last_step}{of}"


def moments_in_words(run: Run) -> Sequence[str]:
    """What the two ends of the comparison are where they are not before and after training."""
    if run.ends is None:
        return []
    first, last = run.ends
    if (first.name, last.name) == ("before", "after"):
        return []
    return [f"The run has no evaluation of its end: {first.name} is compared with {last.name}."]
