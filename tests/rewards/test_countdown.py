"""The countdown game."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._item import Status
from rewards.countdown import countdown
from rlvr.errors import RewardError


def score(expression: str, numbers: Any, target: Any, **options: Any) -> float | None:
    return countdown.judge(f"<answer>{expression}</answer>", target, numbers, **options).value


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("(3 + 5) * 2 - 1", 1.0),
        ("(3+5)*2-1 = 15", 1.0),
        ("(3+5)*2-1 = 16", 0.0),
        ("(3+5)*2-1 =", 0.0),
        ("15 = (3+5)*2-1", 0.0),
        ("[3 + 5] × 2 − 1", 1.0),
        ("(3 + 5) \\times 2 - 1", 1.0),
        ("$(3 + 5) * 2 - 1$", 1.0),
        ("((3 + 5) * 2) -\n1", 1.0),
        ("-1 + 2 * (5 + 3)", 1.0),
        ("3 * 5", 0.0),
        ("3 * 5 * 2 - 15", 0.0),
        ("(3 + 5) * 2 - 1 + 1 - 1", 0.0),
        ("35 - 21 + 1", 0.0),
        ("15", 0.0),
        ("3 ** 2 + 5 + 1", 0.0),
        ("3 // 2 + 5 * 1", 0.0),
        ("3 + 5(2) - 1", 0.0),
        ("(3 + 5) * 2 - 1.0", 0.0),
        ("x = 15", 0.0),
        ("int('15')", 0.0),
        ("__import__('os').abort()", 0.0),
        ("9 ** 9 ** 9 ** 9", 0.0),
        ("(3 + 5", 0.0),
        ("3 / (5 - 5)", 0.0),
        ("", 0.0),
        ("()", 0.0),
        ("٣ + 12", 0.0),
        ("03 + 5 * 2 + 1 + 1", 0.0),
        ("3 +\0 5", 0.0),
        ("-" * 400 + "1", 0.0),
        ("(" * 240 + "1" + ")" * 240, 0.0),
        ("9" * 400 + "*" + "9" * 90, 0.0),
        ("1+" * 300 + "1", 0.0),
    ],
)
def test_expression_must_use_each_number_once_and_reach_the_target(expression: str, expected: float) -> None:
    assert score(expression, [5, 3, 1, 2], 15) == expected


def test_values_are_exact_fractions() -> None:
    assert score("8 / (3 - 8 / 3)", [3, 3, 8, 8], 24) == 1.0
    assert score("1 / 3 * 3", [1, 3, 3], 1) == 1.0
    assert score("1 / 3", [1, 3], 0.3333333333333333) == 0.0


def test_same_number_twice_counts_twice() -> None:
    assert score("4 + 4", [4, 4], 8) == 1.0
    assert score("4 + 4", [4, 4, 4], 8) == 0.0
    assert score("4 + 4", [4], 8, use="at_most") == 0.0
    assert score("4 + 4", [4, 4, 4], 8, use="at_most") == 1.0


def test_numbers_may_be_negative_json_floats_or_called_nums() -> None:
    assert score("5 + -3", [5, -3], 2) == 1.0
    assert score("5 - 3", "[5, 3]", "2") == 1.0
    assert score("5 - 3", [5.0, 3.0], 2.0) == 1.0
    assert countdown(["<answer>5-3</answer>"], nums=[[5, 3]], target=[2]) == [1.0]


@pytest.mark.parametrize(
    ("numbers", "target"),
    [(["a"], 1), ([1], "x"), ([None], 1), (3, 3), ([1], None), ([1], float("inf")), ("[1", 1), ([True], 1)],
)
def test_entry_at_fault_has_no_verdict(numbers: Any, target: Any) -> None:
    assert score("1", numbers, target) is None


def test_missing_column_and_wrong_option_are_named() -> None:
    verdict = countdown.judge("<answer>1</answer>", 1)
    assert (verdict.value, verdict.reason) == (None, "there are no numbers; add a column `numbers` (or `nums`)")
    with pytest.raises(RewardError, match="not one of exactly, at_most"):
        score("1", [1], 1, use="all")


def test_no_answer_is_not_a_wrong_one() -> None:
    assert countdown.judge("1", 1, [1]).status is Status.NO_ANSWER
    assert countdown.judge("1", 1, [1], tag=None).status is Status.CORRECT
    assert countdown.judge("<answer>2</answer>", 1, [1]).status is Status.WRONG


@given(st.text(alphabet="0123456789+-*/() =.e_x\n\0") | st.text())
def test_any_text_is_judged(text: str) -> None:
    assert score(text, [1, 2], 3) in (0.0, 1.0)


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, list[int], Fraction]:
    """An expression with its numbers and its value."""
    parts = [
        (str(number), [number], Fraction(number))
        for number in draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    ]
    while len(parts) > 1:
        (a, one, x), (b, two, y) = parts.pop(), parts.pop()
        sign = draw(st.sampled_from("+-*/" if y else "+-*"))
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[sign]
        parts.append((f"({a} {sign} {b})", one + two, value))
    return parts[0]


@given(expressions())
def test_any_expression_has_its_value(case: tuple[str, list[int], Fraction]) -> None:
    text, numbers, value = case
    if value.denominator == 1:
        assert score(text, numbers, int(value)) == 1.0
        assert score(text, numbers, int(value) + 1) == 0.0
        assert score(text, [*numbers, 7], int(value)) == 0.0
