"""What exact, numeric and format_tags say item by item, beyond `tests/unit/test_rewards.py`."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._item import Status
from rewards.exact import exact
from rewards.format_tags import format_tags
from rewards.numeric import numeric
from rlvr.errors import RewardError


@pytest.mark.parametrize(
    ("gold", "expected"), [(3, 1.0), ("3", 1.0), (3.0, 0.0), (None, None), (True, None), (["3"], None)]
)
def test_exact_takes_numbers_as_written_and_no_other_kind(gold: Any, expected: float | None) -> None:
    assert exact.judge("<answer>3</answer>", gold).value == expected


@pytest.mark.parametrize(("gold", "expected"), [(3, 1.0), (3.0, 1.0), (None, None), (True, None), (float("nan"), None)])
def test_numeric_takes_numbers(gold: Any, expected: float | None) -> None:
    assert numeric.judge("<answer>3</answer>", gold).value == expected


@pytest.mark.parametrize("reward", [exact, numeric])
def test_no_answer_is_told_from_a_wrong_one(reward: Any) -> None:
    texts = ["<answer>4</answer>", "<answer></answer>", "3", "<answer>3"]
    statuses = [reward.judge(text, "3").status for text in texts]
    assert statuses == [Status.WRONG, Status.NO_ANSWER, Status.NO_ANSWER, Status.NO_ANSWER]


@pytest.mark.parametrize(
    ("text", "soft"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("ok <think>a</think> so <answer>b</answer>", 1.0),
        ("<think>a</think>", 0.5),
        ("<answer>b", 0.25),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5),
        ("<think><think></think></think>", 0.0),
        ("<think>a</think><answer>b", 0.75),
        ("", 0.0),
    ],
)
def test_soft_format_is_the_share_of_tags_that_occur_once(text: str, soft: float) -> None:
    assert format_tags([text], mode="soft") == [soft]


def test_format_of_other_tags_in_their_order() -> None:
    texts = [
        "<plan>a</plan>\n<code>b</code> <test>c</test>",
        "<code>b</code><plan>a</plan><test>c</test>",
        "<plan>a</plan>",
    ]
    assert format_tags(texts, tags=("plan", "code", "test")) == [1.0, 0.0, 0.0]
    assert format_tags(texts, tags=("plan", "code", "test"), mode="soft") == pytest.approx([1.0, 1.0, 1 / 3])


def test_format_mode_is_named() -> None:
    with pytest.raises(RewardError, match="not one of strict, soft"):
        format_tags(["x"], mode="lenient")


@given(st.text())
def test_exact_is_equality_of_stripped_text(text: str) -> None:
    assert exact.judge(text, "3", tag=None).value == float(text.strip() == "3")
    if text.strip():
        assert exact.judge(text, text, tag=None).value == 1.0


@given(st.integers(), st.text(alphabet="abc ,.$\n"))
def test_numeric_finds_an_integer_among_words(number: int, words: str) -> None:
    assert numeric.judge(f"{words} {number} {words}", number, tag=None).value == 1.0
    assert numeric.judge(f"{words} {number} {words}", number + 1, tag=None).value == 0.0


@given(st.text())
def test_numeric_judges_any_text(text: str) -> None:
    assert numeric.judge(text, "3", tag=None).value in (0.0, 1.0)
