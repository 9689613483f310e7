"""Rewards that take their label from a vote."""

import random

import pytest

from rewards._batch import boxed
from rewards.co_reward import co_reward
from rewards.majority import majority
from rlvr.errors import RewardError


def tag(*answers: str) -> list[str]:
    return [f"<answer>{answer}</answer>" if answer else "" for answer in answers]


def box(*answers: str) -> list[str]:
    return [f"so \\boxed{{{answer}}}" if answer else "" for answer in answers]


def test_majority_of_each_group_by_equal_prompts() -> None:
    completions = tag("3", " 3 ", "4", "4", "4", "3")
    prompts = ["p", "p", "p", "q", "q", "q"]
    assert majority(completions, prompts) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert majority(completions, messages) == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]


def test_majority_prefers_the_prompt_id_to_the_prompt() -> None:
    # With other hints in the prompt it is still one group.
    assert majority(tag("3", "3", "4"), ["p", "q", "r"], [0, 0, 0]) == [1.0, 1.0, 0.0]
    assert majority(tag("3", "3", "4"), ["p", "p", "p"], [0, 0, 1]) == [1.0, 1.0, 1.0]


def test_majority_ignores_empty_answers_and_gives_them_nothing() -> None:
    assert majority(tag("", "", "", "3"), ["p"] * 4) == [0.0, 0.0, 0.0, 1.0]
    assert majority(tag("", "", "3"), ["p", "p", "q"]) == [None, None, 1.0]


def test_majority_at_a_tie() -> None:
    completions = tag("4", "3", "3", "4", "5")
    assert majority(completions, ["p"] * 5) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert majority(completions, ["p"] * 5, ties="void") == [None] * 5
    assert majority([*completions, *tag("3")], ["p"] * 6, ties="void") == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_majority_of_boxes_and_of_the_whole_text() -> None:
    assert majority(box("3", "3", "\\frac{1}{2}"), ["p"] * 3, extraction="boxed") == [1.0, 1.0, 0.0]
    assert majority(["yes", " yes", "no"], ["p"] * 3, tag=None) == [1.0, 1.0, 0.0]


def test_majority_does_not_depend_on_the_order_but_at_ties() -> None:
    answers = ["3"] * 4 + ["4"] * 3 + ["5"] * 2 + [""]
    random.Random(0).shuffle(answers)
    assert majority(tag(*answers), ["p"] * 10) == [float(answer == "3") for answer in answers]


@pytest.mark.parametrize("options", [{"extraction": "json"}, {"ties": "all"}])
def test_majority_names_the_choices_of_an_option(options: dict[str, str]) -> None:
    with pytest.raises(RewardError, match="is not one of"):
        majority(tag("3"), ["p"], **options)


def test_majority_without_prompts_cannot_tell_groups() -> None:
    with pytest.raises(RewardError, match="`prompts` or `prompt_id`"):
        majority(tag("3"))


def test_co_reward_grades_each_phrasing_with_the_other() -> None:
    completions = box("3", "3", "4", "4", "4", "3")
    got = co_reward(completions, [7] * 6, ["p", "p", "p", "q", "q", "q"])
    # v = 3 from p, v' = 4 from q.
    assert got == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_co_reward_keeps_pairs_apart_and_needs_no_order() -> None:
    completions = box("1", "2", "2", "1")
    assert co_reward(completions, ["a", "b", "b", "a"], ["p", "q", "r", "s"]) == [1.0, 1.0, 1.0, 1.0]
    assert co_reward(completions, ["a", "a", "b", "b"], ["p", "q", "r", "s"]) == [0.0, 0.0, 0.0, 0.0]


def test_co_reward_without_any_answer_in_a_phrasing_gives_the_other_nothing() -> None:
    got = co_reward(box("", "", "3", "3"), [1] * 4, ["p", "p", "q", "q"])
    assert got == [0.0, 0.0, 0.0, 0.0]
    # Not even to empty answers, which equal the missing label.
    assert co_reward(box("", ""), [1, 1], ["p", "q"]) == [0.0, 0.0]


def test_co_reward_of_a_lone_phrasing_has_no_verdict_and_three_are_an_error() -> None:
    assert co_reward(box("3", "3"), [1, 1], ["p", "p"]) == [None, None]
    with pytest.raises(RewardError, match="pair_id 1 has 3 different prompts"):
        co_reward(box("3", "3", "3"), [1, 1, 1], ["p", "q", "r"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed{1} \\boxed{ 2 }", "2"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("\\boxed{\\boxed{1}}", "1"),
        ("\\boxed{}", ""),
        ("\\boxed 3", None),
        ("", None),
    ],
)
def test_boxed_is_the_last_that_closes(text: str, expected: str | None) -> None:
    assert boxed(text) == expected
