"""Scalar reference of linearity: one trajectory after the other, in exact fractions where that is possible."""

import math
from fractions import Fraction

Vector = list[float]


def r_squared(values: Vector, steps: list[int]) -> float:
    """1 - residual / total of the least-squares line, by the normal equations, without any rounding up to the end."""
    x, t = [Fraction(each) for each in values], [Fraction(each) for each in steps]
    n, st, sx = len(t), sum(t), sum(x)
    slope = (n * sum(a * b for a, b in zip(t, x, strict=True)) - st * sx) / (n * sum(a * a for a in t) - st * st)
    intercept = (sx - slope * st) / n
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(t, x, strict=True))
    total = sum((b - sx / n) ** 2 for b in x)
    return float(1 - residual / total) if total else math.nan


def kept(values: Vector, min_range: float, min_distinct: int) -> bool:
    return max(values) - min(values) > min_range and len(set(values)) >= min_distinct


def quantile(values: Vector, share: float) -> float:
    """Linear between the two nearest of the ordered values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def cosine(one: Vector, other: Vector) -> float:
    def dot(a: Vector, b: Vector) -> float:
        return math.fsum(p * q for p, q in zip(a, b, strict=True))

    lengths = math.sqrt(dot(one, one)) * math.sqrt(dot(other, other))
    return dot(one, other) / lengths if lengths else math.nan


def window_cosines(trajectories: list[Vector]) -> list[Vector]:
    """Of the moves between successive times of all trajectories together."""
    times = len(trajectories[0])
    moves = [[each[time + 1] - each[time] for each in trajectories] for time in range(times - 1)]
    return [[cosine(one, other) for other in moves] for one in moves]
