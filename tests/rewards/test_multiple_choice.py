"""Letters and texts of options."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._item import Status
from rewards.multiple_choice import multiple_choice

CITIES = ["Rome", "Paris", "A town", "None of these"]


def judged(text: str, answer: Any = "B", choices: Any = None, **options: Any) -> tuple[float | None, Status]:
    verdict = multiple_choice.judge(text, answer, choices, **options)
    return verdict.value, verdict.status


RIGHT, WRONG, NOTHING = (1.0, Status.CORRECT), (0.0, Status.WRONG), (0.0, Status.NO_ANSWER)


@pytest.mark.parametrize(
    "text",
    [
        "B", "b", "(B)", "(b).", "B.", "B)", "[B]", "B:", "**B**", "$B$", "`B`", "\\text{B}", "B. Paris", "(B) Paris",
        "B because A is wrong", "B, not A", "the answer is B", "Option B", "Answer: (B)", "correct choice: B",
        "B, because", "B - it is the capital", "B Paris",
    ],
)  # fmt: skip
def test_letter_in_the_tag(text: str) -> None:
    assert judged(f"A, C or D? <answer>A</answer> rather <answer>{text}</answer> A") == RIGHT


@pytest.mark.parametrize(
    "text",
    [
        "", "Paris", "2", "A or B", "A and B", "B or A", "A, B", "A/B", "B & A", "B A", "A B C D", "(A) (B)",
        "A) x B) y", "B. C.", "not B", "a dog", "I think", "A town", "either A or B", "BB", "β", "?",
        "the answer is unclear",
    ],
)  # fmt: skip
def test_no_letter_or_more_than_one_in_the_tag(text: str) -> None:
    assert judged(f"<answer>{text}</answer>") == NOTHING


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is B.", RIGHT),
        ("the answer is: **(B)**", RIGHT),
        ("Answer: B", RIGHT),
        ("**Answer:** B", RIGHT),
        ("The answer is A. No: the answer is B", RIGHT),
        ("The answer is B. No: the answer is A", WRONG),
        ("The answer is \\boxed{B}.", RIGHT),
        ("\\boxed{\\text{B}} is what I answer", RIGHT),
        ("the answer is A, so \\boxed{B}", RIGHT),
        ("\\boxed{A}; no, the answer is B", RIGHT),
        ("the answer is either A or B", NOTHING),
        ("B", NOTHING),
        ("the answer\nis\n\nB", RIGHT),
        ("the answer is", NOTHING),
    ],
)
def test_without_a_tag_in_the_text_the_last_statement_counts(text: str, expected: Any) -> None:
    assert judged(text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Paris", "B", RIGHT),
        (" paris. ", "B", RIGHT),
        ("Rome", "B", WRONG),
        ("A town", "C", RIGHT),
        ("A. Rome", "A", RIGHT),
        ("C: A town", "C", RIGHT),
        ("B: A town", "C", NOTHING),
        ("Paris or Rome", "B", NOTHING),
        ("E", "B", NOTHING),
        ("B", "Paris", RIGHT),
        ("B", 1, RIGHT),
        ("A", 0, RIGHT),
        ("B", "(b)", RIGHT),
        ("D", "none of these", RIGHT),
    ],
)
def test_texts_of_options(text: str, answer: Any, expected: Any) -> None:
    assert judged(f"<answer>{text}</answer>", answer, CITIES) == expected
    assert judged(text, answer, '["Rome", "Paris", "A town", "None of these"]', tag=None) == expected


@pytest.mark.parametrize(
    ("answer", "choices", "reason"),
    [
        ("E", CITIES, "no letter up to D"),
        (4, CITIES, "no letter up to D"),
        (True, CITIES, "True"),
        (None, None, "None"),
        ("", None, "no letter"),
        ("B", "Rome, Paris", "not a JSON list"),
        ("B", ["Rome"], "2 to 26"),
        ("B", {"a": 1}, "2 to 26"),
        ("same", ["same", "same"], "not the text of one option"),
    ],
)
def test_entry_at_fault_has_no_verdict(answer: Any, choices: Any, reason: str) -> None:
    verdict = multiple_choice.judge("<answer>B</answer>", answer, choices)
    assert verdict.value is None
    assert reason in verdict.reason


@given(st.text(), st.sampled_from([None, CITIES]))
def test_any_text_is_judged(text: str, choices: Any) -> None:
    for written in (text, f"<answer>{text}</answer>", f"answer is {text}"):
        assert judged(written, "B", choices)[0] in (0.0, 1.0)


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), st.sampled_from([" or ", ", ", " and ", "/", " ", " & "]))
def test_two_letters_never_win(one: str, two: str, between: str) -> None:
    value, status = judged(f"<answer>({one}){between}({two})</answer>", one, CITIES)
    assert (value == 1.0) == (one == two)
    assert one == two or status is Status.NO_ANSWER
