"""The section that asks whether training went beyond the model it began from."""

from collections.abc import Sequence

import numpy as np

from rlvr.evaluation.outcomes import reach_by_prompt
from rlvr.evaluation.reach import Reach
from rlvr.reporting.report.blocks import Figure, Section, Table, Unavailable, figure_of
from rlvr.reporting.report.charts import Chart, Line
from rlvr.reporting.report.records import Run, Series
from rlvr.reporting.report.verdict import SEED, interval, p_value_in_words, signed

RATIOS = (
    ("srr", "kept of what was within reach (SRR)"),
    ("ndr", "new of what is within reach (NDR)"),
    ("sds", "harmonic mean of the two (SDS)"),
    ("nscr", "won minus lost, of all within reach (NSCR)"),
)


def beyond(run: Run) -> Section | None:
    """None without an evaluation before training and a later one, as a run without test sets has."""
    if run.ends is None or run.ends[0].step != 0:
        return None
    first, last = run.ends
    base = {each.name: each for each in first.results if each.is_test}
    found: dict[str, Reach] = {}
    for result in last.results:
        theirs = base.get(result.name)
        if theirs is None or theirs.outcomes is None or result.outcomes is None:
            continue
        reach = reach_by_prompt(theirs.outcomes, result.outcomes, seed=SEED)
        if reach is not None:
            found[result.name] = reach
    if not found:
        raise Unavailable("No test set has outcomes by prompt at both ends, as runs of earlier versions have none.")
    return Section(
        "beyond",
        "Beyond the base model?",
        [*(f"{name}: {reach.verdict}" for name, reach in found.items()), _caution(list(found.values()))],
        [_gains(name, reach) for name, reach in found.items()],
        [table for name, reach in found.items() for table in _tables(name, reach)],
    )


def _caution(found: Sequence[Reach]) -> str:
    reach = found[0]
    return (
        "The base model is the policy before training. A prompt is within reach when one of its"
        f" {reach.num_compared} samples is right, so that one solved less often than in"
        f" {reach.detectable_pass_rate:.0%} of tries may well look out of reach."
    )


def _gains(name: str, reach: Reach) -> Figure:
    points = reach.curves.points
    series = Series(np.array([each.k for each in points]), np.array([each.difference.value for each in points]))
    bands = np.array([[each.difference.low, each.difference.high] for each in points])
    chart = Chart(f"Gain in pass@k on {name}", [Line("after minus before", series, bands)], x_label="k", log_x=True)
    return figure_of(chart, "Over the same prompts; bars are paired 95% intervals. Below 0 the base model is ahead.")


def _tables(name: str, reach: Reach) -> list[Table]:
    support, difference = reach.support, reach.pass_at_1.difference
    rows = [
        ["prompts within reach before and after", str(support.preserved)],
        ["only before: lost", str(support.shrunk)],
        ["only after: won", str(support.expanded)],
        ["never", str(support.unsolved)],
        *([label, interval(getattr(reach.metrics, ratio))] for ratio, label in RATIOS),
        ["pass@1, after minus before", signed(difference) + p_value_in_words(reach.pass_at_1.p_value)],
    ]
    tables = [Table(f"What came within reach on {name} [95% interval]", ["", name], rows)]
    if reach.difficulty:
        bins = [
            [row.label, str(row.num_prompts), interval(row.base), interval(row.tuned), signed(row.difference)]
            for row in reach.difficulty
        ]
        headings = ["right before training", "prompts", "before", "after", "difference"]
        caption = f"pass@1 on {name} by difficulty; half of the samples before training say which, the others how much"
        tables.append(Table(caption, headings, bins))
    return tables
