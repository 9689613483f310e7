"""A run as the report sees it: what was found in its directory, and one sentence for what was not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.outcomes import Outcomes


@dataclass(frozen=True)
class SetResult:
    """One held-out set at one moment."""

    name: str
    is_test: bool
    num_prompts: int
    num_samples: int
    num_unscored: int
    estimates: Mapping[str, Estimate]  # pass@1, pass@8, greedy, ...
    mean_length: float | None
    truncated_frac: float | None
    outcomes: Outcomes | None = None  # by prompt; older runs did not keep them


@dataclass(frozen=True)
class Moment:
    """One evaluation: "before", "step 10", ... or "after"."""

    name: str
    step: int
    results: Sequence[SetResult]


@dataclass(frozen=True)
class Series:
    """The finite values of a metric and the steps they are of."""

    steps: np.ndarray  # [n] int
    values: np.ndarray  # [n] float

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Run:
    """One run directory."""

    name: str
    folder: Path
    facts: Mapping[str, Any]  # run.json
    recipe: Mapping[str, Any]  # resolved
    steps: Sequence[Mapping[str, Any]]  # log records of steps in order, values finite floats or None
    is_finished: bool
    moments: Sequence[Moment]  # in the order of their steps
    notes: Sequence[str] = field(default_factory=tuple)  # what could not be read, a sentence each

    @property
    def last_step(self) -> int:
        """0 when no step was logged."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def metric_names(self) -> list[str]:
        """Every metric of the run that has a value somewhere, in the order of first appearance."""
        names = {name: None for record in self.steps for name, value in record.items() if value is not None}
        return [name for name in names if name != "step"]

    def series(self, name: str) -> Series:
        """The steps at which the metric has a finite value; empty when it has none."""
        found = [(record["step"], record[name]) for record in self.steps if record.get(name) is not None]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return Series(np.array(steps, dtype=int), np.array(values, dtype=float))

    def missing_at(self, name: str) -> list[int]:
        """The steps whose record has the metric without a finite value."""
        return [record["step"] for record in self.steps if name in record and record[name] is None]

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A value of the recipe by its dotted key."""
        value: Any = self.recipe
        for key in dotted.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value

    @property
    def planned_steps(self) -> int | None:
        """None where the recipe says epochs."""
        steps = self.setting("trainer.max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    def moment(self, name: str) -> Moment | None:
        return next((each for each in self.moments if each.name == name), None)

    @property
    def ends(self) -> tuple[Moment, Moment] | None:
        """The first and the last evaluation, where there are two."""
        return (self.moments[0], self.moments[-1]) if len(self.moments) > 1 else None
