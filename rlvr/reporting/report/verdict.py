"""Before and after on held-out prompts: numbers, intervals, and what they allow to be said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlvr.reporting.report.records import Estimate, Run
from rlvr.reporting.report.trends import trend


@dataclass(frozen=True)
class Change:
    """One metric of one set, at the first and the last evaluation.

    `low` and `high` bound the difference as if the two were measured on different prompts, by adding the squared half
    widths of the intervals. As they are the same prompts, the true interval is narrower.
    """

    set_name: str
    is_test: bool
    metric: str
    before: Estimate
    after: Estimate
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def k(self) -> int | None:
        """Of pass@k; None for another metric."""
        name, _, number = self.metric.partition("@")
        return int(number) if name == "pass" and number.isdecimal() else None

    @property
    def word(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not told apart"


def change_of(run: Run) -> list[Change]:
    """Every metric that the first and the last evaluation share; none where there are not two."""
    if run.ends is None:
        return []
    first, last = run.ends
    begun = {each.name: each for each in first.results}
    changes = []
    for result in last.results:
        for metric, after in result.estimates.items():
            old = begun[result.name].estimates.get(metric) if result.name in begun else None
            if old is not None:
                changes.append(_change(result.name, result.is_test, metric, old, after))
    return changes


def _change(name: str, is_test: bool, metric: str, before: Estimate, after: Estimate) -> Change:
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    middle = after.value - before.value
    return Change(name, is_test, metric, before, after, middle - down, middle + up)


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
        f" {change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}]."
    )


def interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def status_of(run: Run) -> str:
    """How far the run came."""
    planned = run.planned_steps
    of = f" of {planned}" if planned is not None else ""
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
