"""Whether tuning beats the base model, and up to which k, in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from rlvr.evaluation.curves import Curves, Point

# With fewer prompts that differ, no test of signs can reach a p-value of 5%: 2 / 2^5 = 0.0625.
MIN_DIFFERING = 6

RL, BASE, NEITHER = "RL", "the base model", "neither"


@dataclass(frozen=True)
class Stretch:
    """Neighbouring k with the same winner."""

    winner: str
    first: int
    last: int


def winner_at(point: Point) -> str:
    """Who is ahead at this k: the interval of the difference leaves out 0, and enough prompts differ to say so."""
    if point.num_differing < MIN_DIFFERING:
        return NEITHER
    if point.difference.low > 0.0:
        return RL
    return BASE if point.difference.high < 0.0 else NEITHER


def stretches(curves: Curves) -> list[Stretch]:
    """The winners from the smallest to the largest k."""
    grouped = ((winner, list(points)) for winner, points in groupby(curves.points, key=winner_at))
    return [Stretch(winner, points[0].k, points[-1].k) for winner, points in grouped]


def curve_verdict(curves: Curves) -> str:
    """What the curves say to someone who has not seen them, in one to three sentences."""
    found, largest = stretches(curves), curves.points[-1].k
    if curves.num_prompts < MIN_DIFFERING:
        return (
            f"Too few prompts to tell RL from the base model: {curves.num_prompts} cannot rule out chance, whatever the"
            f" samples say; evaluate on {MIN_DIFFERING} at the very least."
        )
    if largest == 1:
        said = _AT_ONE[found[0].winner].format(num_prompts=curves.num_prompts)
        return f"{said} More samples per prompt are needed to compare them at larger k."
    pattern = tuple(each.winner for each in found)
    said = _SENTENCES.get(pattern, _listed)(found, curves)
    return " ".join([said, *_crossing(curves)] if pattern in _CROSSED else [said])


# ---- the sentences ---------------------------------------------------------------------------------------------------

Say = Callable[[list[Stretch], Curves], str]

_AT_ONE = {
    RL: "RL wins at k = 1.",
    BASE: "The base model wins at k = 1.",
    NEITHER: "At k = 1 these {num_prompts} prompts do not tell RL from the base model.",
}


def _nothing(found: list[Stretch], curves: Curves) -> str:
    return (
        f"These {curves.num_prompts} prompts do not tell RL from the base model at any k up to {found[0].last}; a"
        " difference too small for them may be there all the same."
    )


_SENTENCES: dict[tuple[str, ...], Say] = {
    (NEITHER,): _nothing,
    (RL,): lambda found, _: f"RL wins at every k up to {found[0].last}.",
    (BASE,): lambda found, _: f"The base model wins at every k up to {found[0].last}.",
    (RL, NEITHER): lambda found, _: f"RL wins up to k = {found[0].last}; above that the base model is not worse.",
    (RL, BASE): lambda found, _: (
        f"RL wins up to k = {found[0].last}; from k = {found[1].first} on the base model wins."
    ),
    (RL, NEITHER, BASE): lambda found, _: (
        f"RL wins up to k = {found[0].last}; above that the base model is not worse, and from k = {found[2].first} on"
        " it wins."
    ),
    (NEITHER, RL): lambda found, _: (
        f"RL wins from k = {found[1].first} up to the largest k, {found[1].last}; below that neither does."
    ),
    (NEITHER, BASE): lambda found, _: (
        f"RL wins at no k; from k = {found[1].first} up to the largest, {found[1].last}, the base model wins."
    ),
    (BASE, NEITHER): lambda found, _: f"The base model wins up to k = {found[0].last}; above that RL is not worse.",
    (BASE, RL): lambda found, _: (
        f"The base model wins up to k = {found[0].last}; from k = {found[1].first} on RL wins."
    ),
    (BASE, NEITHER, RL): lambda found, _: (
        f"The base model wins up to k = {found[0].last}; above that RL is not worse, and from k = {found[2].first} on"
        " it wins."
    ),
}


# Patterns of which it makes sense to ask where RL stops being ahead.
_CROSSED = ((RL,), (RL, NEITHER), (RL, BASE), (RL, NEITHER, BASE))


def _listed(found: list[Stretch], _: Curves) -> str:
    """For curves that change places more often: who wins where."""
    said = []
    for winner in (RL, BASE):
        where = [
            f"k = {each.first}" if each.first == each.last else f"k = {each.first} to {each.last}"
            for each in found
            if each.winner == winner
        ]
        if where:
            said.append(f"{winner} wins at {' and '.join(where)}")
    text = f"{', '.join(said)}; elsewhere neither does."
    return text[0].upper() + text[1:]


def _crossing(curves: Curves) -> list[str]:
    """Where the curves cross, with the interval."""
    crossing, largest = curves.crossing, curves.points[-1].k
    low = f"k = {_shown(crossing.low)}" if crossing.low >= 1.0 else "below k = 1"
    if math.isfinite(crossing.k):
        high = f"beyond k = {largest}" if math.isinf(crossing.high) else f"k = {_shown(crossing.high)}"
        return [f"The curves cross at about k = {_shown(crossing.k)} (95% interval: {low} to {high})."]
    if math.isfinite(crossing.low):
        return [f"RL's curve is still the higher one at k = {largest}, but a crossing from {low} on is not ruled out."]
    return [f"If the curves cross, they do so above k = {largest}."] if winner_at(curves.points[-1]) == RL else []


def _shown(k: float) -> str:
    return f"{k:.1f}" if k < 10 else f"{k:.0f}"
