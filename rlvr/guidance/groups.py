"""The prompts of a step over all ranks: how often each was solved without help, and which are to be helped."""

import random
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


def in_need(groups: Sequence[Group], threshold: float) -> list[Group]:
    """Those whose pass rate without help is known and at most `threshold`."""
    return [group for group in groups if group.pass_rate is not None and group.pass_rate <= threshold]


def chosen(groups: Sequence[Group], probability: float, seed: str) -> list[Group]:
    """Each with `probability`, in random order; decided by `seed` and the prompts alone."""
    kept = [group for group in groups if random.Random(f"{seed}/{group.prompt_id}").random() < probability]
    return sorted(kept, key=lambda group: random.Random(f"{seed}/order/{group.prompt_id}").random())


def with_rows(groups: Sequence[Group], scored: ScoredRollouts) -> list[Group]:
    """The groups with their prompts and columns, fetched from the ranks that have them."""
    rollouts = scored.rollouts
    wanted = {group.prompt_id for group in groups}
    first = {prompt_id: row for row, prompt_id in reversed(list(enumerate(rollouts.group_ids))) if prompt_id in wanted}
    mine = [
        (prompt_id, rollouts.prompts[row], {name: values[row] for name, values in rollouts.columns.items()})
        for prompt_id, row in first.items()
    ]
    found = {prompt_id: (prompt, columns) for prompt_id, prompt, columns in reversed(gather_object(mine))}
    return [Group(g.prompt_id, g.places, g.outcomes, *found[g.prompt_id]) for g in groups]
