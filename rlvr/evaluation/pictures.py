"""Pictures of what `rlvr eval` found."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.outcomes import PASS_AT

Models = Mapping[str, Mapping[str, Mapping[str, Estimate]]]  # by model, set and metric
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by the colour-blind too
MARKERS = "osD^vP"
WIDTH, HEIGHT, DPI = 4.8, 3.6, 120  # inches of one chart
LABEL = 28  # characters


def draw_pass_at_k(models: Models, path: Path) -> bool:
    """pass@k against k of every model, a chart per set; False, and no picture, where there are not two k."""
    sets = list(dict.fromkeys(name for each in models.values() for name in each))
    curves = {name: {label: _curve(each.get(name, {})) for label, each in models.items()} for name in sets}
    ks = sorted({k for each in curves.values() for curve in each.values() for k in curve})
    if len(ks) < 2:
        return False
    with _charts(len(sets), path) as axes:
        for axis, (name, lines) in zip(axes, curves.items(), strict=True):
            for place, (label, curve) in enumerate(lines.items()):
                _line(axis, place, label, list(curve), list(curve.values()))
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, [str(k) for k in ks])
            axis.set(title=name, xlabel="k", ylabel="pass@k")
            axis.legend(frameon=False, fontsize=8)
    return True


def draw_by_step(models: Models, steps: Sequence[int], path: Path) -> bool:
    """pass@1, or of the least k, of checkpoints against their steps, a line per set; False where there are not two."""
    if len(steps) < 2:
        return False
    sets = list(dict.fromkeys(name for each in models.values() for name in each))
    with _charts(1, path) as (axis,):
        for place, name in enumerate(sets):
            found = {
                step: next(iter(curve.values()))
                for step, each in zip(steps, models.values(), strict=True)
                if (curve := _curve(each.get(name, {})))
            }
            _line(axis, place, name, list(found), list(found.values()))
        least = min((k for each in models.values() for found in each.values() for k in _curve(found)), default=1)
        axis.set(xlabel="optimiser step", ylabel=f"pass@{least}")
        axis.legend(frameon=False, fontsize=8)
    return True


def _curve(estimates: Mapping[str, Estimate]) -> dict[int, Estimate]:
    """pass@k by k, ascending."""
    found = {int(m.removeprefix(PASS_AT)): each for m, each in estimates.items() if m.startswith(PASS_AT)}
    return dict(sorted(found.items()))


def _line(axis: Any, place: int, label: str, x: Sequence[int], values: Sequence[Estimate]) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    shown = label if len(label) <= LABEL else f"...{label[-LABEL:]}"
    axis.plot(x, [each.value for each in values], marker=marker, markersize=4, color=colour, label=shown)
    axis.fill_between(
        x, [each.low for each in values], [each.high for each in values], color=colour, alpha=0.15, linewidth=0
    )


@contextmanager
def _charts(count: int, path: Path) -> Iterator[Sequence[Any]]:
    """So many axes beside one another, saved to the path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"text.parse_math": False}):  # names of sets and models are no formulas
        figure, axes = plt.subplots(1, count, figsize=(WIDTH * count, HEIGHT), squeeze=False, layout="constrained")
        for axis in axes[0]:
            axis.grid(alpha=0.3)
            axis.set_ylim(-0.02, 1.02)
        yield axes[0]
        figure.suptitle("mean over prompts, shaded: 95% bootstrap intervals", fontsize=9)
        figure.savefig(path, dpi=DPI)
        plt.close(figure)
