"""The guide stage: prompts that the policy failed without help are sampled again with it."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import gather_object

from rewards._text import text_of
from rlvr.config.guidance import GuidanceConfig
from rlvr.guidance.groups import chosen, in_need, with_rows
from rlvr.guidance.hints import HintStore
from rlvr.guidance.prompting import cut_help, text_of_prompt, with_help
from rlvr.guidance.rows import conditioned
from rlvr.guidance.rules.base import Outcomes, Roles, Rule
from rlvr.guidance.start import Start
from rlvr.guidance.tools import Guided
from rlvr.rollout.rows import put, take, with_completions
from rlvr.rollout.spread import Sampled
from rlvr.sampling.groups import Group, groups_of, has_signal
from rlvr.schedule import value_at
from rlvr.tools import Tools
from rlvr.types import ScoredRollouts


@dataclass(frozen=True)
class Attempt:
    """A group in one round."""

    group: Group
    level: int
    hint: str
    prompt: Any  # with the hint
    roles: Roles

    @property
    def num_sampled(self) -> int:
        """Completions that the round costs."""
        return len(self.group.places) - len(self.roles.kept)


class Guidance:
    """One rule with its hints. Everything it decides is decided from values of all ranks, and alike on every rank."""

    def __init__(
        self,
        config: GuidanceConfig,
        rule: Rule,
        hints: HintStore | None,
        tools: Tools,
        *,
        max_prompt_length: int,
        seed: int,
    ) -> None:
        self.config, self.rule, self.hints, self.tools = config, rule, hints, tools
        self.template = config.prompt_template or rule.default_template
        self.max_prompt_length, self.seed = config.max_prompt_length or max_prompt_length, seed
        self.is_off_policy = config.conditioning == "drop_with_ratio"
        self.start = Start(config.start == "plateau", config.plateau_steps, config.plateau_gain)

    def __call__(self, scored: ScoredRollouts, step: int) -> Guided:
        """Replaces groups in need by helped ones where the rule accepts these; the others stay as they are.

        A prompt is in need when its pass rate without help is at most the threshold. Groups are helped in random order
        until the step's budget of extra rollouts is spent.
        """
        groups = groups_of(scored)
        unhelped = groups if scored.plain is None else groups_of(scored.plain)  # before prompts made room for others
        self.start.observe(mean_of([group.pass_rate for group in unhelped]))
        if not self.rule.uses_hints:
            self.rule.solved(_solved(scored, self.tools.first_place(scored.rollouts)))
        needy = in_need(groups, self.config.threshold)
        session = _Session(self, scored, step)
        if self.start.is_on:
            seed = f"{self.seed}/guidance/{step}"
            selected = chosen(needy, value_at(self.config.probability, step), seed)
            session.run(with_rows(selected, scored))
        return Guided(replace(session.scored, plain=scored.unhelped), session.metrics(groups, needy))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        hints = {} if self.hints is None else self.hints.state_dict()
        return {"start": self.start.state_dict(), "rule": self.rule.state_dict(), "hints": hints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.start.load_state_dict(state["start"])
        self.rule.load_state_dict(state["rule"])
        if self.hints is not None:
            self.hints.load_state_dict(state["hints"])


class _Session:
    """The rounds of one step."""

    def __init__(self, guidance: Guidance, scored: ScoredRollouts, step: int) -> None:
        self.of, self.scored, self.step = guidance, scored, step
        self.first = guidance.tools.first_place(scored.rollouts)
        self.counts: Counter[str] = Counter()
        self.tried: set[int] = set()
        self.over_budget: set[int] = set()
        self.new_outcomes: dict[int, Outcomes] = {}  # of accepted groups
        self.hinted_outcomes: list[float | None] = []
        self.extra_tokens = 0  # of this rank
        self.hint_tokens: list[int] = []

    def run(self, groups: Sequence[Group]) -> None:
        """Rounds until no group is left, the rule has no more to give, or the budget is spent."""
        left = list(groups)
        self.counts["selected"] = len(left)
        for number in range(self.of.rule.rounds + self.of.config.retries):
            if not left:
                break
            left = self._round(left, number)

    def _round(self, groups: Sequence[Group], number: int) -> list[Group]:
        """Samples, scores, and accepts or not; returns the groups that are still unsolved."""
        possible = self._attempts(self._affordable(groups), number)
        attempts = self._within_budget(possible)
        offered = {each.group.prompt_id for each in possible}
        rows = {row: each for each in attempts for row in self._rows(each.group)}
        sampled = self._sampled(rows)
        hints = {row: each.hint for row, each in rows.items() if self._is_hinted(row, each)}
        rollouts = with_completions(self.scored.rollouts, sampled)
        rollouts = conditioned(rollouts, hints, self.of.config.conditioning)
        mine = sorted(rows)
        verdicts = self.of.tools.verify(take(rollouts, mine))
        everyones = dict(gather_object([(self.first + r, o) for r, o in zip(mine, verdicts.outcomes, strict=True)]))
        beyond = offered | self.over_budget
        left = [group for group in groups if group.prompt_id not in beyond]  # the next level may have a hint
        accepted, count_tokens = set(), self.of.tools.count_tokens
        for each in attempts:
            outcomes = [everyones[place] for place in each.group.places]
            plain = {*each.roles.kept, *each.roles.resampled}
            self.hinted_outcomes += [everyones[place] for place in each.group.places if place not in plain]
            self.of.rule.helped(each.group, each.level, outcomes)
            self.tried.add(each.group.prompt_id)
            self.hint_tokens.append(count_tokens(each.prompt) - count_tokens(each.group.prompt))
            if self.of.rule.accepts(outcomes):
                self.new_outcomes[each.group.prompt_id] = outcomes
                accepted.add(each.group.prompt_id)
            else:
                left.append(each.group)
        kept = [place for place, row in enumerate(mine) if rows[row].group.prompt_id in accepted]
        taken = [mine[place] for place in kept]
        self.scored = replace(
            self.scored,
            rollouts=put(self.scored.rollouts, taken, take(rollouts, taken)),
            verdicts=put(self.scored.verdicts, taken, take(verdicts, kept)),
        )
        return left

    def _attempts(self, groups: Sequence[Group], number: int) -> list[Attempt]:
        """What each group would get in this round; groups for which there is nothing are left out."""
        of = self.of
        levels = {group.prompt_id: of.rule.level(group, number) for group in groups}
        if of.hints is None:
            helps = {group.prompt_id: of.rule.help_for(group) for group in groups}
        else:
            helps = {**of.hints.ready([(group, levels[group.prompt_id]) for group in groups], self.step)}
        attempts = []
        for group in groups:
            hint = helps.get(group.prompt_id)
            if hint is None:
                continue
            fitting = cut_help(group.prompt, of.template, hint, of.max_prompt_length, of.tools.count_tokens)
            if fitting is None:
                continue
            self.counts["cut"] += fitting != hint
            roles = of.rule.roles(group, random.Random(f"{of.seed}/roles/{self.step}/{number}/{group.prompt_id}"))
            prompt = with_help(group.prompt, of.template, fitting)
            attempts.append(Attempt(group, levels[group.prompt_id], fitting, prompt, roles))
        return attempts

    def _affordable(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Those for which the policy is to write hints: not more than the budget can help."""
        limit = self.of.config.max_extra_rollouts
        if limit is None or self.of.hints is None or self.of.hints.ahead is not None:
            return groups
        spent, kept = self.counts["rollouts"], []
        for group in groups:
            spent += len(group.places) - len(self.of.rule.roles(group, random.Random(0)).kept)
            if spent <= limit:
                kept.append(group)
            else:
                self.over_budget.add(group.prompt_id)
        return kept

    def _within_budget(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        limit, kept = self.of.config.max_extra_rollouts, []
        for each in attempts:
            if limit is not None and self.counts["rollouts"] + each.num_sampled > limit:
                self.over_budget.add(each.group.prompt_id)
                continue
            self.counts["rollouts"] += each.num_sampled
            kept.append(each)
        return kept

    def _rows(self, group: Group) -> list[int]:
        """The rows of the group that this rank has."""
        count = len(self.scored.rollouts.group_ids)
        return [place - self.first for place in group.places if 0 <= place - self.first < count]

    def _is_hinted(self, row: int, attempt: Attempt) -> bool:
        return self.first + row not in (*attempt.roles.kept, *attempt.roles.resampled)

    def _sampled(self, rows: dict[int, Attempt]) -> dict[int, Sampled]:
        """New completions of the rows that do not keep theirs."""
        wanted = [row for row, each in rows.items() if self.first + row not in each.roles.kept]
        prompts = [rows[row].prompt if self._is_hinted(row, rows[row]) else rows[row].group.prompt for row in wanted]
        sampled = self.of.tools.sample(prompts)
        self.extra_tokens += sum(len(each.completion_ids) for each in sampled)
        return dict(zip(wanted, sampled, strict=True))

    def metrics(self, groups: Sequence[Group], needy: Sequence[Group]) -> dict[str, float]:
        """Shares are of the step's prompts unless the name says otherwise."""
        counts = self.counts + (Counter() if self.of.hints is None else self.of.hints.flush())
        rates = [self.new_outcomes.get(group.prompt_id, group.outcomes) for group in groups]
        count = len(groups)
        metrics = {
            "guidance/needed_frac": len(needy) / count,
            "guidance/helped_frac": len(self.tried) / count,
            "guidance/signal_plain_frac": sum(has_signal(group.outcomes) for group in groups) / count,
            "guidance/signal_frac": sum(map(has_signal, rates)) / count,
            "guidance/extra_rollouts": float(counts["rollouts"]),
            "guidance/extra_tokens": float(sum(gather_object([self.extra_tokens]))),
            "guidance/hint_rollouts": float(counts["hint_rollouts"]),
            "guidance/hint_rollout_tokens": float(counts["hint_tokens"]),
            "guidance/over_budget": float(len(self.over_budget)),
            "guidance/without_hint": float(counts["selected"] - len(self.tried | self.over_budget)),
            "guidance/cut_hints": float(counts["cut"]),
        }
        if self.tried:
            metrics["guidance/success_frac"] = len(self.new_outcomes) / len(self.tried)
            metrics["guidance/hint_tokens"] = sum(self.hint_tokens) / len(self.hint_tokens)
        if (rate := mean_of(self.hinted_outcomes)) is not None:
            metrics["guidance/hinted_pass_rate"] = rate
        if counts["checked"]:
            metrics["guidance/leak_frac"] = (counts["stating"] + counts["sufficient"]) / counts["checked"]
        if self.of.hints is not None and self.of.hints.ahead is None:
            metrics["guidance/unusable_hints"] = float(counts["unusable"])
        return metrics


def _solved(scored: ScoredRollouts, first: int) -> list[tuple[int, str, str]]:
    """(prompt_id, prompt, completion) of all ranks' right completions, the last of each prompt, in the batch's order.

    `first` is the place of this rank's first row.
    """
    rollouts = scored.rollouts
    mine: dict[int, tuple[int, str, str]] = {}
    for row, outcome in enumerate(scored.verdicts.outcomes):
        if outcome == 1:
            prompt, completion = text_of_prompt(rollouts.prompts[row]), text_of(rollouts.completions[row])
            mine[rollouts.group_ids[row]] = first + row, prompt, completion
    everyones = sorted(gather_object([(place, key, *texts) for key, (place, *texts) in mine.items()]))
    last = {prompt_id: place for place, prompt_id, *_ in everyones}
    return [(key, prompt, text) for place, key, prompt, text in everyones if last[key] == place]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of the known values; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
