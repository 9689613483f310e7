"""A policy and a verifier that follow a script, and guide stages on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

from rewards._text import text_of
from rlvr.config.guidance import GuidanceConfig
from rlvr.guidance.hints import HintStore
from rlvr.guidance.prompting import Prompt, text_of_prompt
from rlvr.guidance.rules import RULES
from rlvr.guidance.stage import Guidance
from rlvr.guidance.tools import Guided
from rlvr.rollout.spread import Sampled
from rlvr.tools import Tools
from rlvr.types import Rollouts, ScoredRollouts
from rlvr.verification import Verdicts

OUTCOMES = {"right": 1.0, "wrong": 0.0, "odd": None}  # by the first word of a completion
WORDS = {"1": "right", "0": "wrong", "x": "odd"}
EOS = 1
ALONE = SimpleNamespace(process_index=0, num_processes=1)  # the accelerator of a run in one process


def ids_of(text: str) -> list[int]:
    """One token per word, the same for the same word."""
    return [2 + int.from_bytes(word.encode(), "big") for word in text.split()]


def count_words(prompt: Prompt) -> int:
    return len(text_of_prompt(prompt).split())


@dataclass
class Script:
    """Answers to a prompt, one after the other and again from the start: `outcomes` as "0", "1" and "x", or `texts`.

    What is not mentioned is answered wrong.
    """

    outcomes: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # prompts, in order
    contexts: list[Any] = field(default_factory=list)  # the same as they came: text or messages
    judged: list[Rollouts] = field(default_factory=list)

    def sample_evenly(self, prompts: Sequence[Any]) -> list[Sampled]:
        return [self._sample(prompt) for prompt in prompts]

    def _sample(self, prompt: Any) -> Sampled:
        text = text_of_prompt(prompt)
        number = self.asked.count(text)
        self.asked.append(text)
        self.contexts.append(prompt)
        if text in self.texts:
            completion = self.texts[text][number % len(self.texts[text])]
        else:
            outcomes = self.outcomes.get(text, "0")
            completion = f"{WORDS[outcomes[number % len(outcomes)]]} new{len(self.asked)}"
        ids = [*ids_of(completion), EOS]
        as_prompted: Any = completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
        return Sampled(ids_of(text), ids, as_prompted, [True] * len(ids), [-0.5] * len(ids), truncated=False)

    def verify(self, rollouts: Rollouts) -> Verdicts:
        self.judged.append(rollouts)
        outcomes = [OUTCOMES.get(text_of(each).split()[0], 0.0) for each in rollouts.completions]
        rewards = [None if outcome is None else 2 * outcome for outcome in outcomes]
        return Verdicts(("reward",), [[outcome] for outcome in outcomes], rewards, outcomes)

    def tools(self, accelerator: Any = ALONE, **changes: Any) -> Tools:
        values: dict[str, Any] = {
            "accelerator": accelerator,
            "sample_evenly": self.sample_evenly,
            "verify": self.verify,
            "count_tokens": count_words,
            "encode": lambda text: [*ids_of(text), EOS],
            "scorer": None,
        }
        return Tools(**(values | changes))


def question(prompt_id: int) -> str:
    return f"question {prompt_id}"


def hinted(prompt_id: int, hint: str = "think") -> str:
    return f"question {prompt_id}\n\nHint: {hint}"


def step_of(groups: Mapping[int, str], *, interleaved: bool = False, chat: bool = False) -> ScoredRollouts:
    """The rollouts of a step without help: by prompt, the outcomes of its completions as "0", "1" and "x"."""
    rows = [(prompt_id, outcome) for prompt_id, outcomes in groups.items() for outcome in outcomes]
    if interleaved:
        count = len(next(iter(groups.values())))
        rows = [(prompt_id, outcomes[place]) for place in range(count) for prompt_id, outcomes in groups.items()]
    completions: list[Any] = [f"{WORDS[outcome]} old{place}" for place, (_, outcome) in enumerate(rows)]
    completion_ids = [[*ids_of(text), EOS] for text in completions]
    prompts: list[Any] = [question(prompt_id) for prompt_id, _ in rows]
    prompt_ids = [ids_of(prompt) for prompt in prompts]
    if chat:
        completions = [[{"role": "assistant", "content": text}] for text in completions]
        prompts = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": text}] for text in prompts]
    rollouts = Rollouts(
        group_ids=[prompt_id for prompt_id, _ in rows],
        prompts=prompts,
        completions=completions,
        prompt_ids=prompt_ids,
        context_ids=prompt_ids,
        completion_ids=completion_ids,
        generated_masks=[[True] * len(ids) for ids in completion_ids],
        sampling_logprobs=[[-1.0] * len(ids) for ids in completion_ids],
        truncated=[place % 3 == 0 for place in range(len(rows))],
        columns={"answer": [f"answer{prompt_id}" for prompt_id, _ in rows], "note": list(range(len(rows)))},
    )
    return ScoredRollouts(rollouts, Script().verify(rollouts))


def never(cases: Sequence[tuple[str, Any]]) -> list[bool]:
    return [False] * len(cases)


def hint_store(
    script: Script,
    ahead: dict[int, tuple[str, ...]] | None,
    states_answer: Callable[..., list[bool]] = never,
    record: Callable[[dict[str, Any]], None] = lambda _: None,
    tools: Tools | None = None,
    **hints: Any,
) -> HintStore:
    config = GuidanceConfig.model_validate({"rule": "nurl", "hints": hints}).hints
    return HintStore(config, ahead, states_answer, tools or script.tools(), record)


def stage(
    script: Script,
    rule: str = "nurl",
    *,
    ahead: dict[int, tuple[str, ...]] | None = None,
    store: HintStore | None = None,
    max_prompt_length: int = 50,
    seed: int = 0,
    tools: Tools | None = None,
    **config: Any,
) -> Guidance:
    """A guide stage; without `ahead` every prompt of 0 to 19 has the hint "think", and no hint is tried alone."""
    checked = GuidanceConfig.model_validate({"rule": rule, **config})
    chosen_rule = RULES[rule](checked)
    if ahead is None:
        ahead = {prompt_id: ("think",) for prompt_id in range(20)}
    if store is None and chosen_rule.uses_hints:
        store = hint_store(script, ahead, tools=tools, refuse_sufficient=False)
    return Guidance(
        checked, chosen_rule, store, tools or script.tools(), max_prompt_length=max_prompt_length, seed=seed
    )


def record_of(scored: ScoredRollouts, row: int) -> dict[str, Any]:
    """Everything that is known of one row."""
    values: dict[str, Any] = {}
    for record in (scored.rollouts, scored.verdicts):
        for each in fields(record):
            value = getattr(record, each.name)
            if isinstance(value, list):
                values[f"{type(record).__name__}.{each.name}"] = value[row]
    columns = scored.rollouts.columns
    return values | {f"column.{name}": column[row] for name, column in columns.items()}


def rows_of(scored: ScoredRollouts, prompt_id: int) -> list[int]:
    return [row for row, group in enumerate(scored.rollouts.group_ids) if group == prompt_id]


def changed_rows(before: ScoredRollouts, guided: Guided) -> list[int]:
    """The rows of which anything is different afterwards."""
    count = len(before.rollouts.group_ids)
    assert len(guided.scored.rollouts.group_ids) == count
    return [row for row in range(count) if record_of(before, row) != record_of(guided.scored, row)]
