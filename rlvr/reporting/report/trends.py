"""How a metric moved over a run, in a few robust numbers."""

import itertools
from dataclasses import dataclass

import numpy as np

from rlvr.reporting.report.records import Run, Series

LEAST_STEPS = 10  # logged steps below which nothing is said about a trend
END_SHARE = 0.1  # of the logged steps that is "the beginning" and "the end"


@dataclass(frozen=True)
class Trend:
    """The mean over the first and the last tenth of the steps, and which steps these are."""

    early: float
    late: float
    early_steps: tuple[int, int]
    late_steps: tuple[int, int]

    @property
    def change(self) -> float:
        return self.late - self.early


def trend(run: Run, name: str) -> Trend | None:
    """None where the metric has fewer than LEAST_STEPS values."""
    series = run.series(name)
    if len(series) < LEAST_STEPS:
        return None
    count = max(3, round(len(series) * END_SHARE))
    steps, values = series.steps, series.values
    return Trend(
        float(values[:count].mean()),
        float(values[-count:].mean()),
        (int(steps[0]), int(steps[count - 1])),
        (int(steps[-count]), int(steps[-1])),
    )


def late_mean(run: Run, name: str) -> float | None:
    found = trend(run, name)
    return None if found is None else found.late


def smoothed(series: Series, window: int) -> np.ndarray:
    """The centred moving mean over `window` values, over fewer at the ends; [n]."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(series.values)])
    index = np.arange(len(series))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(series))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def total(run: Run, name: str) -> float:
    """The sum over all optimiser steps; a record that is logged every few steps has their mean and counts as often."""
    steps = [0, *(record["step"] for record in run.steps)]
    gaps = {step: step - last for last, step in itertools.pairwise(steps)}
    series = run.series(name)
    return float(sum(value * gaps[step] for step, value in zip(series.steps.tolist(), series.values, strict=True)))
