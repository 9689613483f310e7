"""The prompts of a step: which are helped."""

import random
from collections.abc import Sequence

from accelerate.utils import gather_object

from rlvr.sampling.groups import Group
from rlvr.types import ScoredRollouts


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
