"""Settings that change with the optimiser step."""

from collections.abc import Mapping
from itertools import pairwise

Schedule = float | Mapping[int, float]


def value_at(schedule: Schedule, step: int) -> float:
    """The value at `step` of a constant, or of `{step: value}` joined by straight lines and constant outside.

    For {10: 0.0, 20: 1.0}: 0.0 at step 5, 0.5 at step 15, 1.0 at step 30.
    """
    if not isinstance(schedule, Mapping):
        return schedule
    knots = sorted(schedule)
    if step <= knots[0]:
        return schedule[knots[0]]
    for left, right in pairwise(knots):
        if step <= right:
            share = (step - left) / (right - left)
            return schedule[left] + share * (schedule[right] - schedule[left])
    return schedule[knots[-1]]
