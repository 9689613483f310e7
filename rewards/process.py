"""Step scores of a process reward model made safe to sum (Gao et al. 2024, arXiv:2410.15115).

Raw sums of step scores pay for more steps. Each function takes the scores q_1..q_K of one completion and returns as
many step rewards; refine by clipping first, then by differences.
"""

from collections.abc import Sequence
from itertools import pairwise

REFINEMENTS = ("none", "clip", "delta", "clip_delta")


def clip(scores: Sequence[float], eta: float) -> list[float]:
    """r_k = min(q_k - eta, 0): no step is worth more than 0. `eta` is near the model's mean score."""
    return [min(score - eta, 0.0) for score in scores]


def delta(scores: Sequence[float]) -> list[float]:
    """r_k = q_k - q_{k+1} for k < K-1, r_{K-1} = q_{K-1}, r_K = 0.

    The sum from a step k < K on is q_k, however many steps follow. A single step gets 0.
    """
    if len(scores) < 2:
        return [0.0] * len(scores)
    differences = [now - following for now, following in pairwise(scores[:-1])]
    return [*differences, float(scores[-2]), 0.0]


def clip_delta(scores: Sequence[float], eta: float) -> list[float]:
    """Clip, then delta."""
    return delta(clip(scores, eta))


def refine(scores: Sequence[float], refinement: str, eta: float) -> list[float]:
    """By the name of the refinement; `none` leaves the scores as they are."""
    match refinement:
        case "clip":
            return clip(scores, eta)
        case "delta":
            return delta(scores)
        case "clip_delta":
            return clip_delta(scores, eta)
    return [float(score) for score in scores]
