"""Charts as SVG that takes its colours from the page, so that one drawing serves light, dark and print.

Lines differ in dash and marker as well as in colour. The same numbers give the same bytes.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from rlvr.reporting.report.records import Series
from rlvr.reporting.report.trends import smoothed

WIDTH, HEIGHT = 4.3, 2.2  # inches, without legend: about as wide as a phone, so that text keeps its size there
LEFT, RIGHT, BOTTOM, TOP = 0.66, 0.1, 0.44, 0.1  # margins in inches
LEFT_OF_NAMES, BAR, LEGEND_ROW = 1.25, 0.27, 0.17
SMOOTH_FROM = 60  # values from which on the line is the moving mean and the values are drawn thinly
POINTS_AT_MOST = 1000
MARKERS_AT_MOST = 8
# Colours that the page replaces: #0102.. becomes the variable of that name in assets/style.css.
INK, FAINT, GRID = "#010201", "#010202", "#010203"
VARIABLES = {"01": "ink", "02": "faint", "03": "grid"} | {f"{16 + index:02x}": f"line{index}" for index in range(8)}
LINES = tuple(f"#0102{16 + index:02x}" for index in range(8))
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.2)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1)),
    (0, (8, 3)),
    "-",
    (0, (2, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rlvr",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 3.2,
}


@dataclass(frozen=True)
class Line:
    """One curve; `bands` [n, 2] are intervals of its points. A line with bands is drawn as points with bars."""

    label: str
    series: Series
    bands: np.ndarray | None = None


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str
    lines: Sequence[Line]
    x_label: str = "optimiser step"
    y_label: str = ""
    limits: tuple[float, float] | None = None
    log_x: bool = False
    marks: Sequence[tuple[int, str]] = field(default_factory=tuple)  # steps with a vertical line and what it means


def draw(chart: Chart) -> Markup:
    """The chart as one `<svg>`; lines without a value are left out."""
    lines = [line for line in chart.lines if len(line.series)]
    columns = 1 if max([len(line.label) for line in lines], default=0) > 24 else 2
    legend = LEGEND_ROW * -(-len(lines) // columns) if len(lines) > 1 else 0.0
    with _figure(chart.title, HEIGHT, LEFT, legend) as (axis, finish):
        for index, line in enumerate(lines):
            _draw_line(axis, line, index % len(LINES))
        for step, _ in chart.marks:
            axis.axvline(step, color=INK, linewidth=1.0, linestyle="--")
        axis.set_xlabel(chart.x_label)
        axis.set_ylabel(chart.y_label)
        axis.yaxis.set_major_formatter(_tick)
        if chart.log_x:
            _powers_of_two(axis, lines)
        if chart.limits is not None:
            axis.set_ylim(*chart.limits)
        if legend:
            axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderaxespad=0.2)
        return finish()


def draw_bars(title: str, names: Sequence[str], values: Sequence[float], unit: str) -> Markup:
    """Horizontal bars, the first on top, each with its number."""
    with _figure(title, BAR * len(names), LEFT_OF_NAMES) as (axis, finish):
        places = np.arange(len(names))[::-1]
        axis.barh(places, values, height=0.66, color=LINES[0])
        axis.set_yticks(places, names)
        top = max([*values, 0.0]) or 1.0
        for place, value in zip(places, values, strict=True):
            axis.text(value + 0.01 * top, place, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", va="center")
        axis.set_xlim(0, 1.16 * top)
        axis.set_xlabel(unit)
        axis.grid(axis="y", visible=False)
        return finish()


def _tick(value: float, _: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


@contextmanager
def _figure(title: str, height: float, left: float, legend: float = 0.0) -> Iterator[tuple[Any, Any]]:
    """Axes of that height to draw on, with room above for a legend, and what makes the SVG of them."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        whole = height + BOTTOM + TOP + legend
        figure = Figure(figsize=(WIDTH, whole))
        FigureCanvasSVG(figure)
        axis = figure.add_axes((left / WIDTH, BOTTOM / whole, 1 - (left + RIGHT) / WIDTH, height / whole))

        def finish() -> Markup:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return as_markup(buffer.getvalue(), title)

        yield axis, finish


def identifier(title: str) -> str:
    """What ids of the chart of that title begin with: there are many charts on a page."""
    return "c" + hashlib.sha256(title.encode()).hexdigest()[:8]


def as_markup(svg: str, title: str) -> Markup:
    """The `<svg>` element alone, sized by the page, coloured by its variables, named for screen readers."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[a-zA-Z]\w*?_\d+"', "<g", body)
    name = identifier(title)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"#0102([0-9a-f]{2})", lambda found: f"var(--{VARIABLES[found[1]]})", body)
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    head = (
        f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(title)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return Markup(head + body[body.index(">") + 1 :].strip())


def _draw_line(axis: Any, line: Line, index: int) -> None:
    colour, marker = LINES[index], MARKERS[index]
    series = _thinned(line.series)
    if line.bands is not None:
        low, high = line.series.values - line.bands[:, 0], line.bands[:, 1] - line.series.values
        axis.errorbar(
            line.series.steps,
            line.series.values,
            yerr=np.maximum([low, high], 0.0),
            label=line.label,
            color=colour,
            marker=marker,
            markersize=4.5,
            capsize=3,
            linewidth=1.2,
            linestyle=DASHES[index],
        )
        return
    drawn = series.values
    if len(series) >= SMOOTH_FROM:
        axis.plot(series.steps, series.values, color=colour, linewidth=0.6, alpha=0.35)
        drawn = smoothed(series, max(3, len(series) // 25))
    every = max(1, len(series) // MARKERS_AT_MOST)
    axis.plot(
        series.steps,
        drawn,
        label=line.label,
        color=colour,
        linewidth=1.6,
        linestyle=DASHES[index],
        marker=marker,
        markersize=3.5,
        markevery=(min(index, len(series) - 1), every),
    )


def _thinned(series: Series) -> Series:
    """The means of so many neighbours that POINTS_AT_MOST are left."""
    each = -(-len(series) // POINTS_AT_MOST)
    if each <= 1:
        return series
    starts = np.arange(0, len(series), each)
    counts = np.diff(starts, append=len(series))
    return Series(series.steps[starts], np.add.reduceat(series.values, starts) / counts)


def _powers_of_two(axis: Any, lines: Sequence[Line]) -> None:
    axis.set_xscale("log", base=2)
    ticks = sorted({int(step) for line in lines for step in line.series.steps})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
