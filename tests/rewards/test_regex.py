"""Patterns."""

import pytest

from rewards._item import Status
from rewards.regex import regex
from rlvr.errors import RewardError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x=1 x=3", 1.0), ("x=3 x=1", 0.0), ("x= 3", 0.0), ("x=33", 0.0), ("nothing", 0.0), ("", 0.0)],
)
def test_last_match_of_the_group_is_the_answer(text: str, expected: float) -> None:
    assert regex([text], answer=["3"], pattern=r"x=(?P<answer>\d+)") == [expected]


def test_answer_may_be_a_number_and_must_be_there() -> None:
    assert regex(["x=3"] * 4, answer=[3, 3.0, "", None], pattern=r"x=(?P<answer>\d+)") == [1.0, 0.0, None, None]
    assert regex(["x=3"], pattern=r"x=(?P<answer>\d+)") == [None]


def test_without_the_group_the_whole_text_must_match() -> None:
    assert regex(["2024-01-31\n", "on 2024-01-31", ""], pattern=r"\d{4}-\d\d-\d\d") == [1.0, 0.0, 0.0]
    assert regex(["<d>7</d> x"], pattern=r"\d", tag="d") == [1.0]


def test_group_that_took_no_part_is_no_answer() -> None:
    verdict = regex.judge("ab", "", pattern="ab(?P<answer>c)?")
    assert verdict.value is None
    assert regex.judge("ab", "c", pattern="ab(?P<answer>c)?").status is Status.NO_ANSWER


def test_pattern_at_fault_is_named() -> None:
    with pytest.raises(RewardError, match=r"cannot compile '\(': missing \), unterminated subpattern"):
        regex(["x"], pattern="(")
    with pytest.raises(RewardError, match="`pattern` is list"):
        regex(["x"], pattern=["x"])
