"""What a section of the page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from rlvr.reporting.report.charts import Chart, Line, draw, identifier
from rlvr.reporting.report.records import Run

TABLE_ROWS = 12  # of the numbers behind a chart


class Unavailable(Exception):
    """A section cannot be built; the message is the sentence that stands in its place."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_numeric: bool = True  # all but the first column


@dataclass(frozen=True)
class Figure:
    """A chart, what it says, and its numbers for those who cannot see it."""

    title: str
    svg: Markup
    about: str
    table: Table

    @property
    def id(self) -> str:
        return identifier(self.title)


@dataclass(frozen=True)
class Section:
    """`missing` says why there is nothing else."""

    id: str
    title: str
    words: Sequence[str] = field(default_factory=tuple)
    figures: Sequence[Figure] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    missing: str | None = None


@dataclass(frozen=True)
class Curve:
    """A metric and its name on a chart."""

    metric: str
    label: str


def figure_of(chart: Chart, about: str) -> Figure:
    """The chart with the table of its numbers."""
    return Figure(chart.title, draw(chart), about, _numbers(chart))


def curves(
    run: Run,
    title: str,
    wanted: Sequence[Curve],
    about: str,
    unit: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure | None:
    """The metrics over steps; None where the run has none of them."""
    lines = [Line(curve.label, run.series(curve.metric)) for curve in wanted]
    lines = [line for line in lines if len(line.series)]
    if not lines:
        return None
    return figure_of(Chart(title, lines, y_label=unit, limits=limits), about)


def present(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def number(value: float | None) -> str:
    """For a table: four significant digits, thousands apart."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _numbers(chart: Chart) -> Table:
    """The values at a few steps, those nearest to evenly spaced ones."""
    lines = [line for line in chart.lines if len(line.series)]
    steps = np.unique(np.concatenate([line.series.steps for line in lines])) if lines else np.zeros(0, dtype=int)
    places = np.unique(np.linspace(0, len(steps) - 1, min(TABLE_ROWS, len(steps))).round().astype(int))
    rows = []
    for step in steps[places]:
        row = [str(step)]
        for line in lines:
            at = np.flatnonzero(line.series.steps == step)
            row.append(number(float(line.series.values[at[0]])) if len(at) else "-")
        rows.append(row)
    return Table(f"Numbers: {chart.title}", [chart.x_label, *(line.label for line in lines)], rows)
