"""The prompts of a step over all ranks, and what became of their completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object

from rlvr.types import ScoredRollouts


@dataclass(frozen=True)
class Group:
    """All completions of one prompt, wherever they are."""

    prompt_id: int
    places: tuple[int, ...]  # rows of the generation batch, counted over all ranks
    outcomes: tuple[float | None, ...]  # of these, without help
    prompt: Any = None  # text or messages, and the other columns of its row; given where the group is to be helped
    columns: Mapping[str, Any] | None = None

    @property
    def pass_rate(self) -> float | None:
        """Of the completions with a verdict; None without any."""
        scorable = [outcome for outcome in self.outcomes if outcome is not None]
        return sum(scorable) / len(scorable) if scorable else None


def groups_of(scored: ScoredRollouts) -> list[Group]:
    """The groups of all ranks, in the order of their first rows; the same on every rank."""
    rows = gather_object(list(zip(scored.rollouts.group_ids, scored.verdicts.outcomes, strict=True)))
    members: dict[int, list[tuple[int, float | None]]] = {}
    for place, (prompt_id, outcome) in enumerate(rows):
        members.setdefault(prompt_id, []).append((place, outcome))
    return [
        Group(prompt_id, tuple(place for place, _ in found), tuple(outcome for _, outcome in found))
        for prompt_id, found in members.items()
    ]


def has_signal(outcomes: Sequence[float | None]) -> bool:
    """Whether some are right and some wrong."""
    return 0 in outcomes and 1 in outcomes
