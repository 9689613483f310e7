"""The hint store: hints that were given ahead or that the policy writes, checked before they are used."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import gather_object

from rewards._text import text_of
from rlvr.config.guidance import HintsConfig
from rlvr.guidance.hint_files import Hints
from rlvr.guidance.prompting import hint_in, request_text, text_of_prompt, with_help
from rlvr.guidance.tools import columns_of, rollouts_of
from rlvr.rollout.spread import Sampled
from rlvr.sampling.groups import Group
from rlvr.tools import Tools

StatesAnswer = Callable[[Sequence[tuple[str, Any]]], list[bool]]  # for each (hint, row): the gold answer is in it
Wanted = Sequence[tuple[Group, int]]  # groups, and the level of hint that each is to get
Key = tuple[int, int]  # prompt_id, level


class HintStore:
    """One hint per prompt and level.

    `ahead` are those of a column or file, None where the policy writes them. A prompt with fewer levels than wanted
    gets its last. Hints that state the answer, or that alone lead the policy to it, are refused. `record` is told of
    every hint that was looked at, on all ranks.
    """

    def __init__(
        self,
        config: HintsConfig,
        ahead: Hints | None,
        states_answer: StatesAnswer,
        tools: Tools,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self.config, self.ahead, self.tools = config, ahead, tools
        self.states_answer, self.record = states_answer, record
        self.kept: dict[Key, tuple[str | None, int]] = {}  # hint, None if refused for good; step of its making
        self.counts: Counter[str] = Counter()  # what happened since `flush`, on all ranks alike
        self.cost: Counter[str] = Counter()  # `rollouts` and `tokens` since `flush`, of this rank

    def ready(self, wanted: Wanted, step: int) -> dict[int, str]:
        """The hints of the prompts that have one. All ranks call it with the same groups, and get the same.

        A hint that is due to be written anew stays where no new one can be had.
        """
        levels = {group.prompt_id: self._level(group, level) for group, level in wanted}
        pending = [g for g, _ in wanted if levels[g.prompt_id] and not self._is_known(g, levels[g.prompt_id], step)]
        for _ in range(self.config.attempts if self.ahead is None else 1):
            if not pending:
                break
            pending = self._attempt(pending, levels, step)
        found = {}
        for group, _ in wanted:
            hint, _ = self.kept.get((group.prompt_id, levels[group.prompt_id]), (None, 0))
            if hint is not None:
                found[group.prompt_id] = hint
        return found

    def flush(self) -> Counter[str]:
        """Counts since the last call: hints `checked`, `stating`, `sufficient`, `unusable`; and what making and trying
        them cost over all ranks, `hint_rollouts` and `hint_tokens`. All ranks call it.
        """
        costs = gather_object([(self.cost["rollouts"], self.cost["tokens"])])
        counts, self.counts, self.cost = self.counts, Counter(), Counter()
        counts["hint_rollouts"] = sum(rollouts for rollouts, _ in costs)
        counts["hint_tokens"] = sum(tokens for _, tokens in costs)
        return counts

    def _level(self, group: Group, level: int) -> int:
        """The level that there is; 0 for none."""
        return level if self.ahead is None else min(level, len(self.ahead.get(group.prompt_id, ())))

    def _is_known(self, group: Group, level: int, step: int) -> bool:
        if (group.prompt_id, level) not in self.kept:
            return False
        every, (_, made) = self.config.refresh_every, self.kept[group.prompt_id, level]
        return every is None or step - made < every

    def _attempt(self, pending: Sequence[Group], levels: dict[int, int], step: int) -> list[Group]:
        """Makes and checks a hint for each, every rank its share; returns the groups that still have none."""
        accelerator = self.tools.accelerator
        mine = pending[accelerator.process_index :: accelerator.num_processes]
        texts = self._texts(mine, levels)
        faults = self._faults(mine, texts)
        results = gather_object([(g.prompt_id, *rest) for g, *rest in zip(mine, texts, faults, strict=True)])
        made = {prompt_id: (text, fault) for prompt_id, text, fault in results}
        left = []
        for group in pending:
            text, fault = made[group.prompt_id]
            level = levels[group.prompt_id]
            self.record({"step": step, "prompt_id": group.prompt_id, "level": level, "hint": text, "fault": fault})
            self.counts["checked"] += text is not None
            if fault is None:
                self.kept[group.prompt_id, level] = (text, step)
                continue
            self.counts[fault] += 1
            left.append(group)
            if self.ahead is not None:  # it will not change
                self.kept[group.prompt_id, level] = (None, step)
        return left

    def _texts(self, groups: Sequence[Group], levels: dict[int, int]) -> list[str | None]:
        if self.ahead is not None:
            return [self.ahead[group.prompt_id][levels[group.prompt_id] - 1] for group in groups]
        explanations = [""] * len(groups)
        if self.config.explain_template is not None:
            explanations = self._asked(self.config.explain_template, groups, levels, explanations)
        written = self._asked(self.config.write_template, groups, levels, explanations)
        return [hint_in(text, self.config.tag) for text in written]

    def _asked(
        self, template: str, groups: Sequence[Group], levels: dict[int, int], explanations: Sequence[str]
    ) -> list[str]:
        """What the policy writes on the filled-in template."""
        prompts = []
        for group, explanation in zip(groups, explanations, strict=True):
            extra = {
                "level": levels[group.prompt_id],
                "explanation": explanation,
                "prompt": text_of_prompt(group.prompt),
            }
            assert group.columns is not None
            prompts.append(with_help(group.prompt, "{hint}", request_text(template, group.columns, **extra)))
        return [text_of(each.completion) for each in self._sampled(prompts)]

    def _sampled(self, prompts: Sequence[Any]) -> list[Sampled]:
        """One completion per prompt, counted on this rank."""
        sampled = self.tools.sample(prompts)
        self.cost["rollouts"] += len(sampled)
        self.cost["tokens"] += sum(len(each.completion_ids) for each in sampled)
        return sampled

    def _faults(self, groups: Sequence[Group], texts: Sequence[str | None]) -> list[str | None]:
        """Why each hint is not to be used: `unusable`, `stating`, `sufficient`; None for a good one."""
        faults: list[str | None] = [None if text is not None else "unusable" for text in texts]
        cases = [(text, group.columns) for text, group in zip(texts, groups, strict=True) if text is not None]
        if self.config.refuse_answers:
            stating = iter(self.states_answer(cases))
            faults = [fault or ("stating" if next(stating) else None) for fault in faults]
        if self.config.refuse_sufficient:
            left = [row for row, fault in enumerate(faults) if fault is None]
            for row in self._sufficient([groups[row] for row in left], [str(texts[row]) for row in left], left):
                faults[row] = "sufficient"
        return faults

    def _sufficient(self, groups: Sequence[Group], hints: Sequence[str], rows: Sequence[int]) -> list[int]:
        """Those of `rows` whose hint alone, without the question, leads the policy to the answer in one attempt."""
        template = self.config.alone_template
        prompts = [with_help(group.prompt, template, hint) for group, hint in zip(groups, hints, strict=True)]
        sampled = self._sampled(prompts)
        columns = columns_of([group.columns for group in groups])
        outcomes = self.tools.verify(rollouts_of([g.prompt for g in groups], sampled, columns)).outcomes
        return [row for row, outcome in zip(rows, outcomes, strict=True) if outcome == 1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: hints that the policy wrote."""
        return {"kept": [[*key, *value] for key, value in self.kept.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
        self.kept = {(prompt_id, level): (hint, made) for prompt_id, level, hint, made in state["kept"]}
