"""Several runs beside one another."""

from collections.abc import Sequence

from rlvr.reporting.report.alarms import alarms_of
from rlvr.reporting.report.blocks import Figure, Section, Table, figure_of, number
from rlvr.reporting.report.charts import Chart, Line
from rlvr.reporting.report.records import Run
from rlvr.reporting.report.sections import SHARE
from rlvr.reporting.report.setup import differences
from rlvr.reporting.report.trends import late_mean
from rlvr.reporting.report.verdict import change_of, interval, p_value_in_words, paired_difference, signed, status_of

# (metric, title, unit, limits of the axis)
ALIGNED: tuple[tuple[str, str, str, tuple[float, float] | None], ...] = (
    ("outcome/pass_rate", "Pass rate of training completions", "", SHARE),
    ("reward/mean", "Reward", "", None),
    ("entropy/mean_token", "Policy entropy", "nats per token", None),
    ("completions/mean_length", "Completion length", "tokens", None),
    ("completions/truncated_frac", "Truncated completions", "", SHARE),
    ("groups/equal_reward_frac", "Groups with equal rewards", "", SHARE),
    ("grad_norm", "Gradient norm", "", None),
    ("step_time", "Time of a step", "seconds", None),
)


def compared(runs: Sequence[Run]) -> list[Section]:
    """Numbers with intervals, aligned curves, what was found, and the recipes' differences."""
    return [_results(runs), _curves(runs), _alarms(runs), _differences(runs)]


def _results(runs: Sequence[Run]) -> Section:
    tables = [_ends(runs)]
    keys = {(each.set_name, each.metric): each.is_test for run in runs for each in change_of(run)}
    for (name, metric), is_test in keys.items():
        rows = []
        for run in runs:
            found = [each for each in change_of(run) if (each.set_name, each.metric) == (name, metric)]
            against = _against(runs[0], run, name, metric)
            rows += [
                [run.name, interval(each.before), interval(each.after), signed(each.difference), each.word, against]
                for each in found
            ] or [[run.name, "-", "-", "-", "not evaluated at both ends", against]]
        role = "" if is_test else " (validation)"
        headings = ["run", "before", "after", "difference", "", f"after, minus {runs[0].name}"]
        tables.append(Table(f"{metric} on {name}{role} [95% interval]", headings, rows))
    return Section("results", "Results", tables=tables)


def _against(first: Run, run: Run, name: str, metric: str) -> str:
    """The last evaluation of a run against that of the first run, prompt by prompt."""
    if run is first:
        return ""
    ends = [
        next((each for each in one.moments[-1].results if each.name == name and metric in each.estimates), None)
        if one.moments
        else None
        for one in (run, first)
    ]
    if ends[0] is None or ends[1] is None:
        return "-"
    paired = paired_difference(ends[0], ends[1], metric)
    if paired is None:
        return "other prompts, or none kept"
    return signed(paired.difference) + p_value_in_words(paired.p_value)


def _ends(runs: Sequence[Run]) -> Table:
    metrics = ("outcome/pass_rate", "entropy/mean_token", "completions/mean_length", "completions/truncated_frac")
    rows = [[run.name, status_of(run), *(number(late_mean(run, name)) for name in metrics)] for run in runs]
    headings = ["run", "state", "pass rate", "entropy", "length", "truncated"]
    return Table("Training at the end, mean over the last tenth of the steps", headings, rows)


def _curves(runs: Sequence[Run]) -> Section:
    figures: list[Figure] = []
    for metric, title, unit, limits in ALIGNED:
        lines = [Line(run.name, run.series(metric)) for run in runs]
        if any(len(line.series) for line in lines):
            figures.append(figure_of(Chart(title, lines, y_label=unit, limits=limits), metric))
    missing = None if figures else "None of the runs logged a step."
    return Section("learning", "Aligned curves", figures=figures, missing=missing)


def _alarms(runs: Sequence[Run]) -> Section:
    rows = [
        [run.name, f"{alarm.severity}: {alarm.title}", alarm.evidence]
        for run in runs
        for alarm in alarms_of(run).values()
    ]
    if not rows:
        return Section("alarms", "Alarms", ["None of the known failure patterns was found in any run."])
    table = Table("Alarms by run", ["run", "pattern", "evidence"], rows, is_numeric=False)
    return Section("alarms", "Alarms", ["What to try stands in the report of the single run."], tables=[table])


def _differences(runs: Sequence[Run]) -> Section:
    table = differences(runs)
    if table is None:
        return Section("differences", "Recipe differences", ["The recipes are the same."])
    return Section("differences", "Recipe differences", tables=[table])
