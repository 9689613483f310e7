"""Hints that give the answer away, in the eyes of the verifier that a run has."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from rewards._item import ItemReward, Judgement, graded, unscorable
from rewards.countdown import countdown
from rewards.exact import exact
from rewards.math_answer import math
from rewards.multiple_choice import multiple_choice
from rewards.numeric import numeric
from rewards.reasoning_gym import reasoning_gym
from rlvr.errors import RewardError
from rlvr.guidance.leaks import MAX_CANDIDATES, states_answer
from rlvr.verification import RewardFunction
from rlvr.verification.judging import Judge
from rlvr.verification.tasks import Limits


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge(0, Limits(5.0, 5.0, 0))
    yield judge
    judge.close()


def leaks(judge: Judge, function: Callable[..., Any], hint: str, *, correct_at: float = 1.0, **row: Any) -> bool:
    (stated,) = states_answer(judge, RewardFunction("verifier", 1.0, function), correct_at, [(hint, row)])
    return stated


# ---- by the verifier ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "answer", "hint", "stated"),
    [
        # Forms that only the verifier takes for the answer.
        (math, "1/2", "It is 0.5 in the end.", True),
        (math, "0.5", r"You get \frac{1}{2} of it, or 5.", True),
        (math, "1/2", "Half, that is 2/4, remains.", True),
        (math, "1234", "There are 1,234 of them, all told.", True),
        (math, "-3", "So \N{MINUS SIGN}3 is left.", True),
        (math, "3", "So -3 is left.", False),
        (math, "x^2-1", r"Multiply: $(x-1)(x+1)$, then go on.", True),
        (math, r"\frac{\sqrt{3}}{2}", r"Note that \boxed{\sqrt{\frac{3}{4}}} comes out, and think about 5.", True),
        (math, "7", "9 - 2", True),
        (math, "7", "x = 10 - 3, as you see", True),
        (math, "7", "Subtract the smaller number from the larger one.", False),
        (math, "7", "Begin with 17 and 70, 7.5 or 1,700.", False),
        (numeric, "1000", "There are 1,000 of them.", True),
        (partial(numeric, tolerance=1), "5", "Take 6.0, then 9.", True),
        (numeric, "5", "Take 6.0, then 9.", False),
        (numeric, "1000", "There are 1e3, then 5.", False),
        (numeric, "0.25", "It costs .25 dollars, or 3 for all.", True),
        (math, "1/2", r"\boxed{\frac{2}{\frac{8}{2}}} it is, or \boxed{5}.", True),
        (exact, "1234", "There are 1,234 of them.", True),
        # Answers without words, which only the verifier finds.
        (exact, "+-+", " +-+\n", True),
        (exact, "+-+", "The answer is: +-+.", True),
        (exact, "+-+", "The answer is +-+", True),
        (exact, "+-+", "Then y = +-+, I think.", False),
        (exact, "+-+", "Then y = '+-+', I think.", True),
        (exact, "+-+", "Write <b>+-+</b> down.", True),
        (exact, "+-+", "Write $+-+$ down.", True),
        (exact, "+-+", r"Write \(+-+\) down.", True),
        (exact, "+-+", "Write <answer>+-+</answer> down.", True),
        (exact, "+-+", "Write +-+ down, or '+-+-'.", False),
        (partial(exact, tag="final"), "==>", "Show `==>` there.", True),
        (partial(exact, tag=None), "==>", "==>", True),
        (exact, "==>", "One could write => or == there.", False),
        (multiple_choice, "B", "It is option (B), of course.", True),
        (multiple_choice, "b", "Rule out C; see B.", True),
        (multiple_choice, "B", "Think about which animal barks.", False),
        (multiple_choice, "A", "A dog barks. I know that.", False),
        (multiple_choice, "A", "Only A fits.", True),
        (multiple_choice, "A", "Compare the animals: A is right", True),
        (multiple_choice, "B", "Vitamins B12 and C matter.", False),
    ],
)
def test_what_the_verifier_takes_for_the_answer(
    function: Callable[..., Any], answer: str, hint: str, stated: bool, judge: Judge
) -> None:
    assert leaks(judge, function, hint, answer=answer) is stated


def test_other_columns_reach_the_verifier(judge: Judge) -> None:
    row: dict[str, Any] = {"answer": "B", "choices": json.dumps(["a cat", "a dog"]), "other": None}
    assert leaks(judge, multiple_choice, "It is “a dog”.", **row)
    assert not leaks(judge, multiple_choice, "It is “a cat”.", **row)
    metadata = json.dumps({"source_dataset": "chain_sum"})
    assert leaks(judge, reasoning_gym, "It comes to 12, or so; then check.", answer="12", metadata=metadata)
    assert not leaks(judge, reasoning_gym, "It comes to 13; then check.", answer="12", metadata=metadata)


def test_another_right_answer_is_one_too(judge: Judge) -> None:
    row = {"answer": "2 * 3 + 1", "nums": [1, 2, 3], "target": 7, "numbers": [1, 2, 3]}
    assert leaks(judge, countdown, "Try `3 * 2 + 1`.", **row)
    assert not leaks(judge, countdown, "Try `3 * 2`.", **row)


def test_the_threshold_of_the_run_decides(judge: Judge) -> None:
    row = {"answer": "secret words"}
    half = ItemReward(lambda text, answer: Judgement(0.5 * float(text == "half"), graded(0).status))
    assert leaks(judge, half, "see 'half'", correct_at=0.5, **row)
    assert not leaks(judge, half, "see 'half'", correct_at=0.6, **row)


def test_each_hint_is_judged_against_its_own_row_in_one_call() -> None:
    class Counting(Judge):
        calls = 0

        def judge(self, *arguments: Any) -> Any:
            self.calls += 1
            return super().judge(*arguments)

    judge = Counting(0, Limits(5.0, 5.0, 0))
    hints = ["so 3.0", "so 4.0", "so 5", "so 4.0", ""]
    cases = [(hint, {"answer": gold}) for hint, gold in zip(hints, "33543", strict=True)]
    verifier = RewardFunction("verifier", 1.0, numeric)
    assert states_answer(judge, verifier, 1.0, cases) == [True, False, True, True, False]
    assert judge.calls == 1
    assert states_answer(judge, verifier, 1.0, []) == []


def test_workers_judge_as_this_process_does() -> None:
    judge = Judge(1, Limits(5.0, 5.0, 1024))
    try:
        verifier = RewardFunction("verifier", 1.0, numeric)
        cases = [("It is .50, not 3.", {"answer": "0.5"}), ("It is 0.4.", {"answer": "0.5"})]
        assert states_answer(judge, verifier, 1.0, cases) == [True, False]
    finally:
        judge.close()


# ---- what no verifier judges ----------------------------------------------------------------------------------------


async def slow(text: str, answer: str) -> Judgement:
    raise AssertionError("not to be asked")


@pytest.mark.parametrize(
    "function",
    [lambda completions, **_: [1.0] * len(completions), ItemReward(slow), ItemReward(lambda text, absent: graded(1.0))],
)
def test_other_verifiers_are_not_asked(function: Callable[..., Any], judge: Judge) -> None:
    assert leaks(judge, function, "it is 7", answer="7")
    assert not leaks(judge, function, "it is 7.0", answer="7")


@pytest.mark.parametrize("answer", [None, 7, 7.0, ["7"]])
def test_an_answer_that_is_no_text_is_not_judged(answer: Any, judge: Judge) -> None:
    assert not leaks(judge, ItemReward(lambda text, answer: graded(1.0)), "7", answer=answer)
    assert not leaks(judge, exact, "7")


def test_what_the_verifier_cannot_judge_is_no_answer(judge: Judge) -> None:
    def failing(text: str, answer: str) -> Judgement:
        if answer == "raises":
            raise ValueError("no")
        return unscorable("never")

    assert not leaks(judge, ItemReward(failing), "x 7", answer="z")
    assert not leaks(judge, ItemReward(failing), "x 7", answer="raises")
    with pytest.raises(RewardError):
        leaks(judge, ItemReward(lambda text, answer: "text"), "x 7", answer="z")  # type: ignore[arg-type, return-value]


# ---- containment ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "hint", "stated"),
    [
        ("New  York", "think of new york\tCity", True),
        ("New York", "think of new\n york", True),
        ("York", "Yorkshire, New-Yorker", False),
        ("7", "take 7.", True),
        ("7", "take 17, 7.5, 7,000, 0.7, x7 or 7th", False),
        ("7", "of 1,7 and 9", True),
        ("700", "of 1,700", False),
        ("-7", "so 9-7", False),
        ("-7", "so -7", True),
        ("7", "so -7", False),
        ("7", "-7", False),
        ("7", "9-7 or 9 - 7", True),
        ("Paris", "step 3.Paris", True),
        ("北京", "答案是北京。", True),
        ("北京", "答案是东京。", False),
        ("北", "答案是北京。", False),
        ("(1, 2]", "the set (1, 2] it is", True),
        ("a.c", "abc", False),
        ("?!", "really ?!", False),
        ("", "anything", False),
        ("A", "a dog, or A cat", False),
        ("A", "see (A)", True),
        ("x", "solve for x", True),
        ("x", "extra", False),
        ("a", "a dog", False),
        ("\0b", "a \0b c", True),
        ("\ud800x", "\ud800x", True),
        ("٤٢", "\u202e٤٢\u202c", True),
        ("x" * 2**20, "y" + "x" * 2**20, False),
        ("end", "x" * 2**20 + " end", True),
    ],
)
def test_words_of_the_answer_in_the_hint(answer: str, hint: str, stated: bool, judge: Judge) -> None:
    assert leaks(judge, lambda completions, **_: [0.0], hint, answer=answer) is stated


# ---- hostile hints --------------------------------------------------------------------------------------------------

HUGE = [
    "\\boxed{" * 2**17,
    "{" * 2**20,
    "$" * 2**20,
    "'" * 2**20,
    "“" * 2**20,
    "`a " * 2**18,
    "\\(" * 2**19,
    "<a" * 2**19,
    "<a>" * 2**18,
    "= " * 2**19,
    "answer " * 2**17,
    "A " * 2**19,
    "A" + " " * 2**20,
    "7" * 2**20,
    "1,234" * 2**17,
    "7 / " * 2**18,
    "\\frac{1}{" * 2**16,
    "\0\ud800\u202e" * 2**18,
    "\n" * 2**20,
]


@pytest.mark.parametrize("index", range(len(HUGE)))
def test_a_huge_hint_is_read_in_a_moment_and_few_candidates_are_judged(index: int) -> None:
    seen: list[str] = []

    def recording(text: str, answer: str) -> Judgement:
        seen.append(text)
        return graded(0.0)

    judge = Judge(0, Limits(20.0, 20.0, 0))
    assert not leaks(judge, ItemReward(recording), HUGE[index], answer="B")
    assert 1 <= len(seen) <= MAX_CANDIDATES
    assert len(set(seen)) == len(seen)


def test_the_last_of_many_numbers_is_among_the_candidates(judge: Judge) -> None:
    numbers: Mapping[bool, str] = {True: "5.0", False: "5.5"}
    for stated, last in numbers.items():
        assert (
            leaks(judge, numeric, " ".join(f"{n}" for n in range(100, 400)) + f" {last} apples, 2 and 1", answer="5")
            is stated
        )
