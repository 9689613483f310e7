"""Dynamic sampling of DAPO (arXiv 2503.14476): a step is spent on prompts that can teach something."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset

from rlvr.config.sampler import DynamicConfig
from rlvr.rollout.rows import put, take, with_completions
from rlvr.sampling.groups import Group, groups_of, has_signal
from rlvr.tools import Tools
from rlvr.types import Rollouts, ScoredRollouts

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Resampled:
    """The rollouts that go on, and metrics of all ranks."""

    scored: ScoredRollouts
    metrics: dict[str, float]


class DynamicSampling:
    """Puts other prompts in the place of those whose completions are all right or all wrong, by the verifier.

    In each round every such prompt is exchanged for one that the step has not had, drawn at random from all training
    prompts; it stays if some of its completions are right and some wrong. What is left after the last round stays as it
    was, with advantage 0: DAPO draws on and on, and never ends on data that is too hard. Everything is decided from
    values of all ranks and the number of the step, so that every rank, and a resumed run, decides alike.

    `left_to_guidance` is the pass rate up to which prompts are the guide stage's; None without one.
    """

    def __init__(
        self, config: DynamicConfig, data: Dataset, tools: Tools, *, left_to_guidance: float | None, seed: int
    ) -> None:
        self.config, self.data, self.tools = config, data, tools
        self.left_to_guidance, self.seed = left_to_guidance, seed
        self.prompt_ids: list[int] = list(data["prompt_id"])
        self.num_prompts = len(set(self.prompt_ids))  # rows of one prompt may share its id

    def __call__(self, scored: ScoredRollouts, step: int) -> Resampled:
        """`step` counts the optimiser steps before. `plain` of the result is what became of the first prompts."""
        groups = groups_of(scored)
        left = [group for group in groups if self._makes_room(group)]
        metrics = {"dynamic/without_signal_frac": len(left) / len(groups)}
        seen = {group.prompt_id for group in groups}
        now, counts, num_left = scored, Counter[str](), len(left)
        draws = random.Random(f"{self.seed}/dynamic/{step}")
        for _ in range(self.config.max_rounds):
            rows = self._drawn(len(left), seen, draws)
            if not rows:
                break
            seen |= {row["prompt_id"] for row in rows}
            now, accepted = self._round(now, list(zip(left, rows, strict=False)), counts)
            left = [group for group in left if group.prompt_id not in accepted]
            counts["rounds"] += 1
        metrics["dynamic/replaced_frac"] = (num_left - len(left)) / len(groups)
        metrics |= {f"dynamic/{name}": float(counts[name]) for name in ("rounds", "extra_rollouts", "extra_tokens")}
        return Resampled(replace(now, plain=scored), metrics)

    def _makes_room(self, group: Group) -> bool:
        if has_signal(group.outcomes):
            return False
        rate = group.pass_rate
        return self.left_to_guidance is None or rate is None or rate > self.left_to_guidance

    def _drawn(self, count: int, seen: Set[int], draws: random.Random) -> list[Row]:
        """So many rows of prompts that are not among `seen`; fewer where the data set has no more."""
        found: dict[int, int] = {}  # places by prompt
        count = min(count, self.num_prompts - len(seen))
        while len(found) < count:
            place = draws.randrange(len(self.prompt_ids))
            if self.prompt_ids[place] not in seen:
                found[self.prompt_ids[place]] = place
        return [self.data[place] for place in found.values()]

    def _round(
        self, now: ScoredRollouts, exchanged: Sequence[tuple[Group, Row]], counts: Counter[str]
    ) -> tuple[ScoredRollouts, set[int]]:
        """The rollouts with the new prompts that are worth it, and the prompts whose place these took."""
        first, size = self.tools.first_place(now.rollouts), len(now.rollouts.group_ids)
        owners = {place - first: pair for pair in exchanged for place in pair[0].places if 0 <= place - first < size}
        mine = sorted(owners)
        sampled = self.tools.sample([owners[row][1]["prompt"] for row in mine])
        changed = with_completions(take(now.rollouts, mine), dict(enumerate(sampled)))
        changed = _with_prompts(changed, [owners[row][1] for row in mine])
        verdicts = self.tools.verify(changed)
        lengths = [len(each.completion_ids) for each in sampled]
        parts = zip([first + row for row in mine], verdicts.outcomes, lengths, strict=True)
        found = {place: (outcome, length) for place, outcome, length in gather_object(list(parts))}
        counts["extra_rollouts"] += len(found)
        counts["extra_tokens"] += sum(length for _, length in found.values())
        accepted = {group.prompt_id for group, _ in exchanged if has_signal([found[p][0] for p in group.places])}
        kept = [place for place, row in enumerate(mine) if owners[row][0].prompt_id in accepted]
        rows = [mine[place] for place in kept]
        return (
            replace(
                now,
                rollouts=put(now.rollouts, rows, take(changed, kept)),
                verdicts=put(now.verdicts, rows, take(verdicts, kept)),
            ),
            accepted,
        )


def _with_prompts(rollouts: Rollouts, rows: Sequence[Row]) -> Rollouts:
    """The same completions as ones of these rows of the data."""
    return replace(
        rollouts,
        group_ids=[row["prompt_id"] for row in rows],
        prompts=[row["prompt"] for row in rows],
        prompt_ids=rollouts.context_ids,
        columns={name: [row[name] for row in rows] for name in rollouts.columns},
    )
