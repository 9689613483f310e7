"""A reward needs a test that it pays for what is right and for nothing else."""

import pytest
from my_rlvr_rewards import even_number, shorter_than_group


@pytest.mark.parametrize(
    ("text", "value"), [("<answer>4</answer>", 1.0), ("<answer>3</answer>", 0.0), ("4", 0.0), ("", 0.0)]
)
def test_even_number(text: str, value: float) -> None:
    assert even_number([text], answer=["2"]) == [value]


def test_reference_that_is_no_number_gives_no_verdict() -> None:
    assert even_number(["<answer>4</answer>"], answer=["two"]) == [None]


def test_shorter_than_group() -> None:
    assert shorter_than_group(["ab", "abcd", "", "x"], ["p", "p", "p", "q"]) == [1.0, 0.0, 0.0, 1.0]
