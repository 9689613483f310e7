"""Settings that are a number or a schedule `{step: number}` (see `rlvr.schedule`), and pairs of bounds."""

import sys
from collections.abc import Callable
from math import inf
from typing import Annotated, Any

from pydantic import PlainValidator

from rlvr.config.problems import Problem, misfit


def _schedule(minimum: float, number: str) -> Callable[[Any], float | dict[int, float]]:
    """A validator that raises Problem for anything but numbers of at least `minimum`, which `number` says in words."""

    def is_number(entry: Any) -> bool:
        return isinstance(entry, int | float) and not isinstance(entry, bool) and minimum <= entry < inf

    def validate(value: Any) -> float | dict[int, float]:
        if is_number(value):
            return float(value)
        steps = isinstance(value, dict) and value
        if steps and all(type(k) is int and k >= 0 and is_number(v) for k, v in value.items()):
            return {step: float(entry) for step, entry in value.items()}
        raise Problem("", misfit(value, f"{number}, or a mapping {{step: number}}"))

    return validate


def _bounds(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = isinstance(value, list | tuple) and len(value) == 2
    if pair and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        low, high = float(value[0]), float(value[1])
        if -inf < low < high < inf:
            return low, high
    raise Problem("", misfit(value, "null or two numbers [low, high] with low below high"))


Coefficient = Annotated[float | dict[int, float], PlainValidator(_schedule(0.0, "a number of at least 0"))]
Weight = Annotated[float | dict[int, float], PlainValidator(_schedule(-sys.float_info.max, "a number"))]
Bounds = Annotated[tuple[float, float] | None, PlainValidator(_bounds)]
