"""Pictures of how linear in the step a run moved, from the numbers of its `linearity.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, TOKENS, STEP_LINE = "#0072B2", "#D55E00", "#000000"
NO_VALUE = "#DDDDDD"
ANNOTATED_AT_MOST = 12  # columns of a matrix whose cells have room for their numbers
LABEL_LENGTH = 42


def draw_linearity(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures into a folder and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pictures = {
        "r2_histogram.png": _histograms(report, plt),
        "r2_by_module_and_layer.png": _by_module_and_layer(report["weights"], plt),
        "cosines.png": _cosines(report["windows"], plt),
        "trajectories.png": _trajectories(report, plt),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)
    return [folder / name for name in pictures]


def _measured(report: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """Name of one, name of several, colour and numbers of each kind of trajectory that was measured."""
    found = [("weight", "weights", WEIGHTS, report["weights"])]
    if report["logprobs"] is not None:
        found.append(("log-probability", "completion tokens", TOKENS, report["logprobs"]))
    return found


def _histograms(report: Mapping[str, Any], plt: Any) -> Any:
    """How many trajectories have which R^2, and how many were kept at all."""
    measured = _measured(report)
    figure, axes = plt.subplots(
        1, len(measured), figsize=(5.2 * len(measured), 3.8), layout="constrained", squeeze=False
    )
    edges = report["histogram_edges"]
    for axis, (_, name, colour, numbers) in zip(axes[0], measured, strict=True):
        fit, counts = numbers["all"], numbers["histogram"]
        axis.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colour, edgecolor="white", linewidth=0.5)
        title = f"{fit['kept']:,} of {fit['sampled']:,} {name} kept ({fit['kept_fraction']:.1%})"
        axis.set(title=title, xlabel="R² with the step", ylabel=name, xlim=(0, 1))
        if fit["median_r2"] is not None:
            median = f"median {fit['median_r2']:.3f}"
            axis.axvline(fit["median_r2"], color=STEP_LINE, linestyle="--", linewidth=1.5, label=median)
            axis.legend(loc="upper left", frameon=False)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def _by_module_and_layer(weights: Mapping[str, Any], plt: Any) -> Any:
    """Median R^2, and the share of weights that it speaks of, by module type (rows) and layer (columns)."""
    cells = weights["by_module_and_layer"]
    modules = list(weights["by_module"])
    layers = sorted({each["layer"] for each in cells if each["layer"] is not None})
    columns = [*layers, *([None] if any(each["layer"] is None for each in cells) else [])]
    size = (2 * max(3.6, 0.42 * len(columns) + 2.4), max(2.6, 0.42 * len(modules) + 1.4))
    figure, axes = plt.subplots(1, 2, figsize=size, layout="constrained")
    for axis, key, title in zip(axes, ("median_r2", "kept_fraction"), ("median R²", "share kept"), strict=True):
        matrix = np.full((len(modules), len(columns)), np.nan)
        for each in cells:
            if each[key] is not None:
                matrix[modules.index(each["module"]), columns.index(each["layer"])] = each[key]
        image = _matrix(axis, matrix, "cividis", 0.0, 1.0)
        axis.set(title=title, xlabel="layer")
        shown = ["no\nlayer" if layer is None else str(layer) for layer in columns]
        _ticks(axis.set_xticks, shown)
        axis.set_yticks(range(len(modules)), modules)
        figure.colorbar(image, ax=axis, shrink=0.9)
    return figure


def _cosines(windows: Mapping[str, Any], plt: Any) -> Any:
    """The cosine between the moves of any two windows."""
    matrix = np.array([[np.nan if each is None else each for each in row] for row in windows["cosines"]])
    names = [f"{first}-{last}" for first, last in windows["steps"]]
    side = min(9.0, max(4.4, 0.55 * len(names) + 2.0))
    figure, axis = plt.subplots(figsize=(side + 0.9, side), layout="constrained")
    image = _matrix(axis, matrix, "PuOr", -1.0, 1.0)
    axis.set(title="cosine between the moves of windows", xlabel="steps", ylabel="steps")
    _ticks(axis.set_xticks, names, rotation=45)
    _ticks(axis.set_yticks, names)
    figure.colorbar(image, ax=axis, shrink=0.85)
    return figure


def _trajectories(report: Mapping[str, Any], plt: Any) -> Any:
    """Trajectories at quantiles of R^2, the least linear on the left, each with its least-squares line."""
    measured = _measured(report)
    count = max(1, *(len(numbers["examples"]) for _, _, _, numbers in measured))
    size = (3.1 * max(2, count), 2.8 * len(measured))
    figure, axes = plt.subplots(len(measured), count, figsize=size, layout="constrained", squeeze=False)
    steps = np.array(report["steps"], dtype=float)
    for row, (name, names, colour, numbers) in zip(axes, measured, strict=True):
        for axis, example in zip(row, numbers["examples"], strict=False):
            values = np.array(example["values"])
            slope, start = np.polyfit(steps, values, 1)
            axis.plot(steps, start + slope * steps, color=STEP_LINE, linewidth=1, linestyle="--")
            axis.plot(steps, values, color=colour, marker="o", markersize=4, linewidth=1.2)
            axis.set_title(f"R² {example['r2']:.3f}\n{_short(example['label'])}", fontsize=8, parse_math=False)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.ticklabel_format(axis="y", useOffset=False)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(name if numbers["examples"] else "", fontsize=9)
        for axis in row[len(numbers["examples"]) :]:
            axis.set_axis_off()
        if not numbers["examples"]:
            row[0].text(0.0, 0.5, f"none of the {names} kept", fontsize=9, transform=row[0].transAxes)
    return figure


def _matrix(axis: Any, matrix: Any, colours: str, low: float, high: float) -> Any:
    """A matrix as colours, grey where there is no number, with the numbers where there is room."""
    axis.set_facecolor(NO_VALUE)
    image = axis.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect="auto")
    if matrix.shape[1] <= ANNOTATED_AT_MOST:
        for (row, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    return image


def _ticks(set_ticks: Any, names: Sequence[str], rotation: float = 0.0) -> None:
    """Every name, or every few where there are many; the last one always."""
    every = -(-len(names) // 16)
    places = [*range(0, len(names) - 1, every), len(names) - 1]
    set_ticks(places, [names[place] for place in places], rotation=rotation, fontsize=8)


def _short(label: str) -> str:
    """The end of a long label, where names of tensors differ."""
    return label if len(label) <= LABEL_LENGTH else "..." + label[-LABEL_LENGTH + 3 :]
