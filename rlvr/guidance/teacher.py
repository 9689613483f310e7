"""AMPO (arXiv 2510.02227): a failed group borrows right completions of a teacher in place of some of its own."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import gather_object

from rewards.reference_probability import aggregate
from rlvr.config.guidance import GuidanceConfig, TeacherConfig
from rlvr.guidance.groups import chosen, in_need, with_rows
from rlvr.guidance.stage import mean_of
from rlvr.guidance.start import Start
from rlvr.guidance.tools import Guided, columns_of, rollouts_of
from rlvr.rollout.rows import put, take, with_completions
from rlvr.rollout.spread import Sampled
from rlvr.sampling.groups import Group, groups_of, has_signal
from rlvr.schedule import value_at
from rlvr.tools import Tools
from rlvr.types import OffPolicy, ScoredRollouts

Pool = Mapping[int, Sequence[str]]  # completions by prompt_id


@dataclass(frozen=True)
class Candidate:
    """A completion of the teacher that the verifier found right."""

    prompt_id: int
    text: str
    token_ids: list[int]
    comprehension: float  # how likely the policy finds the reference after the teacher's reasoning


class TeacherGuidance:
    """Replaces up to `max_replaced` failures of a group by the teacher's completions that the policy follows best.

    c = mean over the reference's tokens of pi(a*_t | prompt, reasoning, a*_<t), the arithmetic mean of the released
    script or the paper's geometric one; ties go to the shorter. Only completions that the verifier finds right are
    used. Their tokens' ratio is pi / (pi + gamma), unclipped, as in the script: the teacher's own probabilities are not
    needed. The paper's advantage has no division by the std: take `algorithm.preset: dr_grpo` or `advantage` for that.
    """

    is_off_policy = True

    def __init__(self, config: GuidanceConfig, teacher: TeacherConfig, pool: Pool, tools: Tools, *, seed: int) -> None:
        self.config, self.teacher, self.pool, self.tools, self.seed = config, teacher, pool, tools, seed
        self.start = Start(config.start == "plateau", config.plateau_steps, config.plateau_gain)

    def __call__(self, scored: ScoredRollouts, step: int) -> Guided:
        """Replaces completions of groups in need. All ranks call it."""
        groups = groups_of(scored)
        unhelped = groups if scored.plain is None else groups_of(scored.plain)  # before prompts made room for others
        self.start.observe(mean_of([group.pass_rate for group in unhelped]))
        needy = in_need(groups, self.config.threshold)
        seed = f"{self.seed}/teacher/{step}"
        selected = chosen(needy, value_at(self.config.probability, step), seed) if self.start.is_on else []
        failed_groups = with_rows(selected, scored)
        candidates, counts = self._candidates(failed_groups)
        first = self.tools.first_place(scored.rollouts)
        mine = range(first, first + len(scored.rollouts.group_ids))
        places: dict[int, Candidate] = {}
        for group in failed_groups:
            failed = [place for place, outcome in zip(group.places, group.outcomes, strict=True) if outcome == 0]
            best = sorted(candidates.get(group.prompt_id, []), key=lambda c: (-c.comprehension, len(c.token_ids)))
            count = min(self.teacher.max_replaced, len(failed), len(best))
            rows = random.Random(f"{seed}/rows/{group.prompt_id}").sample(failed, count)
            places |= dict(zip(rows, best, strict=False))
        replaced = self._replaced(scored, {place - first: c for place, c in places.items() if place in mine})
        helped_ids = {candidate.prompt_id for candidate in places.values()}
        count = len(groups)
        metrics = {
            "guidance/needed_frac": len(needy) / count,
            "guidance/helped_frac": len(helped_ids) / count,
            "guidance/signal_plain_frac": sum(has_signal(group.outcomes) for group in groups) / count,
            "guidance/signal_frac": sum(has_signal(_outcomes_with(places, group)) for group in groups) / count,
            "guidance/replaced": float(len(places)),
            "guidance/without_teacher": float(len(failed_groups) - len(helped_ids)),
            "guidance/teacher_wrong": float(counts["wrong"]),
            "guidance/teacher_too_long": float(counts["too_long"]),
        }
        if places:
            metrics["guidance/comprehension"] = sum(c.comprehension for c in places.values()) / len(places)
        return Guided(replace(replaced, plain=scored.unhelped), metrics)

    def _candidates(self, groups: Sequence[Group]) -> tuple[dict[int, list[Candidate]], Counter[str]]:
        """Usable completions by prompt, and how many were not; every rank looks at its share of the prompts."""
        accelerator, counts = self.tools.accelerator, Counter[str]()
        mine = groups[accelerator.process_index :: accelerator.num_processes]
        pairs = []
        for group in mine:
            for text in self.pool.get(group.prompt_id, ()):
                ids = self.tools.encode(text)
                counts["too_long"] += ids is None
                if ids is not None:
                    pairs.append((group, text, ids))
        right = self._right(pairs)
        counts["wrong"] += len(pairs) - len(right)
        found = [
            Candidate(group.prompt_id, text, ids, comprehension)
            for (group, text, ids), comprehension in zip(right, self._comprehension(right), strict=True)
        ]
        by_prompt: dict[int, list[Candidate]] = {}
        for candidate in gather_object(found):
            by_prompt.setdefault(candidate.prompt_id, []).append(candidate)
        return by_prompt, sum(gather_object([counts]), Counter())

    def _right(self, pairs: Sequence[tuple[Group, str, list[int]]]) -> list[tuple[Group, str, list[int]]]:
        sampled = [_as_sampled(ids, as_completion(g.prompt, text), [0]) for g, text, ids in pairs]
        columns = columns_of([group.columns for group, _, _ in pairs])
        outcomes = self.tools.verify(rollouts_of([g.prompt for g, _, _ in pairs], sampled, columns)).outcomes
        return [pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome == 1]

    def _comprehension(self, pairs: Sequence[tuple[Group, str, list[int]]]) -> list[float]:
        starts = [self.tools.scorer.render(group.prompt) + before_answer(text) for group, text, _ in pairs]
        answers = [str((group.columns or {}).get("answer", "")) for group, _, _ in pairs]
        scored = self.tools.scorer.score_tokens(starts, answers)
        return [aggregate(values, self.teacher.pick_by) if values else 0.0 for values in scored]

    def _replaced(self, scored: ScoredRollouts, rows: dict[int, Candidate]) -> ScoredRollouts:
        """With the candidates in place of this rank's completions at `rows`."""
        old = scored.rollouts
        sampled = {
            row: _as_sampled(c.token_ids, as_completion(old.prompts[row], c.text), old.prompt_ids[row])
            for row, c in rows.items()
        }
        mine = sorted(rows)
        borrowed: list[OffPolicy | None] = [OffPolicy(gamma=self.teacher.gamma, is_certain=True)] * len(mine)
        changed = replace(take(with_completions(old, sampled), mine), off_policy=borrowed)
        rollouts = put(old, mine, changed)
        verdicts = self.tools.verify(changed)
        return replace(scored, rollouts=rollouts, verdicts=put(scored.verdicts, mine, verdicts))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"start": self.start.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.start.load_state_dict(state["start"])


def _outcomes_with(places: Mapping[int, Candidate], group: Group) -> list[float | None]:
    """Of the group once the completions at `places` are a teacher's, which are right."""
    return [1.0 if place in places else o for place, o in zip(group.places, group.outcomes, strict=True)]


def before_answer(text: str, opening: str = "<answer>") -> str:
    """The text up to and with the opening of its last answer; with a new line after it where it marks none."""
    place = text.rfind(opening)
    return text + "\n" if place < 0 else text[: place + len(opening)]


def as_completion(prompt: Any, text: str) -> Any:
    """The text in the form that completions of this prompt have."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _as_sampled(ids: list[int], completion: Any, prompt_ids: list[int]) -> Sampled:
    unknown = [float("nan")] * len(ids)
    return Sampled(prompt_ids, ids, completion, [True] * len(ids), unknown, truncated=False)
