"""A teacher's completions in place of failures: which, how many, of which rows, and how the loss sees them."""

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rlvr.config.guidance import GuidanceConfig
from rlvr.guidance.prompting import text_of_prompt
from rlvr.guidance.teacher import Pool, TeacherGuidance
from rlvr.guidance.tools import Guided
from rlvr.types import OffPolicy, ScoredRollouts
from tests.unit.guide_script import EOS, Script, changed_rows, ids_of, question, record_of, rows_of, step_of

MAX_TOKENS = 6


@dataclass
class Comprehension:
    """A scorer by script: token probabilities of the answer after a text that has the key in it."""

    probabilities: dict[str, list[float]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def render(self, prompt: Any) -> str:
        return f"[{text_of_prompt(prompt)}]"

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        self.asked += zip(texts, targets, strict=True)
        found = [next((p for key, p in self.probabilities.items() if key in text), [0.5]) for text in texts]
        return [[math.log(p) for p in values] for values in found]


def encode(text: str) -> list[int] | None:
    ids = [*ids_of(text), EOS]
    return ids if len(ids) <= MAX_TOKENS else None


def teacher(
    pool: Pool, scorer: Comprehension | None = None, script: Script | None = None, seed: int = 0, **config: Any
) -> TeacherGuidance:
    settings = {name: config.pop(name) for name in ("max_replaced", "gamma", "pick_by") if name in config}
    values = {"rule": "teacher", "teacher": {"column": "solution"} | settings, **config}
    checked = GuidanceConfig.model_validate(values)
    assert checked.teacher is not None
    tools = (script or Script()).tools(encode=encode, scorer=scorer or Comprehension())
    return TeacherGuidance(checked, checked.teacher, pool, tools, seed=seed)


def borrowed(before: ScoredRollouts, guided: Guided) -> list[str]:
    return sorted(guided.scored.rollouts.completions[row] for row in changed_rows(before, guided))


# ---- which prompts and rows -----------------------------------------------------------------------------------------


def test_only_failed_groups_borrow() -> None:
    before = step_of({0: "0001", 1: "0000", 2: "1111", 3: "xxxx", 4: "0000"}, interleaved=True)
    guided = teacher({each: [f"right by{each}"] for each in range(4)})(before, 0)
    (row,) = changed_rows(before, guided)
    assert before.rollouts.group_ids[row] == 1
    assert guided.metrics["guidance/needed_frac"] == pytest.approx(2 / 5)
    assert guided.metrics["guidance/helped_frac"] == pytest.approx(1 / 5)
    assert guided.metrics["guidance/without_teacher"] == 1.0


@pytest.mark.parametrize(("limit", "available", "expected"), [(1, 3, 1), (2, 3, 2), (3, 2, 2), (9, 9, 4)])
def test_at_most_so_many_are_replaced(limit: int, available: int, expected: int) -> None:
    before = step_of({0: "0000"})
    guided = teacher({0: [f"right no{number}" for number in range(available)]}, max_replaced=limit)(before, 0)
    assert len(changed_rows(before, guided)) == guided.metrics["guidance/replaced"] == expected
    assert len(set(borrowed(before, guided))) == expected


def test_only_failures_are_replaced() -> None:
    """Neither successes, which a threshold above 0 allows, nor completions without a verdict."""
    for seed in range(20):
        before = step_of({0: "x01x0"})
        guided = teacher({0: ["right a", "right b", "right c"]}, threshold=0.5, max_replaced=4, seed=seed)(before, 0)
        assert changed_rows(before, guided) == [1, 4]


def test_replaced_rows_are_random_and_the_same_on_a_rerun() -> None:
    before, found = step_of({0: "00000000"}), []
    for seed in (0, 0, 1, 2, 3):
        found.append(changed_rows(before, teacher({0: ["right a", "right b"]}, seed=seed)(before, 0)))
    assert found[0] == found[1]
    assert len({tuple(rows) for rows in found}) > 2
    step = changed_rows(before, teacher({0: ["right a", "right b"]})(before, 1))
    assert step != found[0]


# ---- which completions ----------------------------------------------------------------------------------------------


def test_only_right_completions_are_used_and_the_others_counted() -> None:
    pool = {0: ["wrong a", "right b", "odd c", "right far too many words for this"], 1: ["wrong d"], 2: ["right e"]}
    before = step_of({0: "0000", 1: "0000", 2: "0111"})
    guided = teacher(pool, max_replaced=4)(before, 0)
    assert borrowed(before, guided) == ["right b"]
    assert guided.metrics["guidance/teacher_wrong"] == 3.0
    assert guided.metrics["guidance/teacher_too_long"] == 1.0
    assert guided.metrics["guidance/replaced"] == 1.0
    assert guided.metrics["guidance/without_teacher"] == 1.0


def test_completions_are_judged_with_the_columns_of_their_prompt() -> None:
    script = Script()
    teacher({0: ["right a", "right b"], 1: ["wrong c"]}, script=script)(step_of({0: "0000", 1: "0000"}), 0)
    judged = dict(zip(script.judged[0].completions, script.judged[0].columns["answer"], strict=True))
    assert judged == {"right a": "answer0", "right b": "answer0", "wrong c": "answer1"}


def test_highest_comprehension_first_and_ties_to_the_shorter() -> None:
    pool = {0: ["right low", "right tie longer text", "right tie x", "right best of all"]}
    scorer = Comprehension({"low": [0.1], "tie": [0.4], "best": [0.9]})
    before = step_of({0: "0000"})
    chosen = {1: ["right best of all"], 2: ["right best of all", "right tie x"]}
    chosen[3] = sorted([*chosen[2], "right tie longer text"])
    for limit, expected in chosen.items():
        guided = teacher(pool, scorer, max_replaced=limit)(before, 0)
        assert borrowed(before, guided) == sorted(expected)
    assert guided.metrics["guidance/comprehension"] == pytest.approx((0.9 + 0.4 + 0.4) / 3)


@pytest.mark.parametrize(("pick_by", "expected"), [("mean", "right uneven"), ("geometric", "right even")])
def test_comprehension_is_the_mean_of_the_answers_tokens(pick_by: str, expected: str) -> None:
    scorer = Comprehension({"uneven": [0.99, 0.11], " even": [0.5, 0.5]})  # means 0.55 and 0.5, geometric 0.33 and 0.5
    before = step_of({0: "0000"})
    guided = teacher({0: ["right uneven", "right even"]}, scorer, pick_by=pick_by, max_replaced=1)(before, 0)
    assert borrowed(before, guided) == [expected]


def test_scorer_is_asked_for_the_reference_after_the_reasoning() -> None:
    scorer = Comprehension()
    pool = {0: ["right <answer> a </answer> <answer> b </answer>"], 1: ["right c"]}
    guidance = teacher(pool, scorer)
    guidance(step_of({0: "0000", 1: "0000"}), 0)
    assert sorted(scorer.asked) == [
        (f"[{question(1)}]right c\n", "answer1"),
    ]  # the first is longer than may be sampled
    scorer.asked.clear()
    guidance.pool = {0: ["right <answer>a</answer> <answer>b</answer>"]}
    guidance(step_of({0: "0000"}), 1)
    assert scorer.asked == [(f"[{question(0)}]right <answer>a</answer> <answer>", "answer0")]


# ---- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_borrowed_rows_are_certain_with_gamma_and_of_the_plain_prompt(chat: bool) -> None:
    before = step_of({5: "0000", 0: "0000", 6: "0111"}, chat=chat)
    copied = copy.deepcopy(before)
    guided = teacher({0: ["right a b"]}, gamma=0.25)(before, 0)
    (row,) = changed_rows(before, guided)
    assert row in rows_of(before, 0)
    rollouts = guided.scored.rollouts
    completion = "right a b"
    assert rollouts.completions[row] == ([{"role": "assistant", "content": completion}] if chat else completion)
    assert rollouts.completion_ids[row] == encode(completion)
    assert rollouts.off_policy[row] == OffPolicy(gamma=0.25, is_certain=True)
    assert rollouts.context_ids[row] == rollouts.loss_context_ids[row] == before.rollouts.prompt_ids[row]
    assert rollouts.generated_masks[row] == [True] * 4
    assert rollouts.truncated[row] is False
    assert rollouts.sampling_logprobs is not None
    assert np.isnan(rollouts.sampling_logprobs[row]).all()
    assert len(rollouts.sampling_logprobs[row]) == 4
    assert guided.scored.verdicts.outcomes[row] == 1.0
    assert guided.scored.verdicts.rewards[row] == 2.0
    for name in ("group_ids", "prompts", "prompt_ids", "columns"):
        assert getattr(rollouts, name) == getattr(before.rollouts, name)
    for other in set(range(12)) - {row}:
        for name, value in record_of(before, other).items():
            assert record_of(guided.scored, other)[name] is value
    assert guided.scored.unhelped == before == copied


def test_metrics_by_hand() -> None:
    pool = {0: ["right a", "right b", "right c"], 1: ["wrong d", "right far too many words for it"], 3: ["right e"]}
    before = step_of({0: "0000", 1: "0000", 2: "0101", 3: "x000", 4: "1111"})
    scorer = Comprehension({"right a": [0.2], "right b": [0.8], "right c": [0.6], "right e": [0.1]})
    guided = teacher(pool, scorer)(before, 0)
    assert guided.metrics == {
        "guidance/needed_frac": pytest.approx(3 / 5),
        "guidance/helped_frac": pytest.approx(2 / 5),
        "guidance/signal_plain_frac": pytest.approx(1 / 5),
        "guidance/signal_frac": pytest.approx(3 / 5),
        "guidance/replaced": 3.0,
        "guidance/without_teacher": 1.0,
        "guidance/teacher_wrong": 1.0,
        "guidance/teacher_too_long": 1.0,
        "guidance/comprehension": pytest.approx((0.8 + 0.6 + 0.1) / 3),
    }


def test_a_group_without_a_failure_left_has_no_signal() -> None:
    guided = teacher({0: ["right a", "right b"], 1: ["right c"]})(step_of({0: "x00x", 1: "0xx0"}), 0)
    assert guided.metrics["guidance/helped_frac"] == 1.0
    assert guided.metrics["guidance/signal_frac"] == 0.5


def test_probability_and_plateau() -> None:
    before = step_of({0: "0000"})
    assert changed_rows(before, teacher({0: ["right a"]}, probability=0.0)(before, 0)) == []
    guidance = teacher({0: ["right a"]}, start="plateau", plateau_steps=2)
    found = [bool(changed_rows(before, guidance(before, step))) for step in range(4)]
    assert found == [False, False, True, True]
    other = teacher({0: ["right a"]}, start="plateau", plateau_steps=2)
    other.load_state_dict(json.loads(json.dumps(guidance.state_dict())))
    assert changed_rows(before, other(before, 9))
