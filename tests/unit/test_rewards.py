"""What the rewards say about right, wrong and hostile completions; `tests/rewards` has what holds for all of them."""

import json
import subprocess
import sys
import threading

import pytest
import reasoning_gym as gym

from rewards._text import tagged, text_of
from rewards.exact import exact
from rewards.format_tags import format_tags
from rewards.math_answer import math
from rewards.numeric import numeric
from rewards.reasoning_gym import reasoning_gym

SUM = {"answer": "3", "metadata": {"source_dataset": "chain_sum"}}
GOLD = "<think>1 + 2 = 3</think>\n<answer> 3 </answer>"


def test_importing_the_package_imports_no_reward() -> None:
    program = (
        "import sys, rewards\nheavy = {'torch', 'reasoning_gym', 'math_verify', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)), [name for name in sys.modules if name.startswith('rewards.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


# ---- text -----------------------------------------------------------------------------------------------------------


def test_text_of_messages_is_the_last_assistant_content() -> None:
    def say(role: str, content: str | None) -> dict[str, str | None]:
        return {"role": role, "content": content}

    assert text_of([say("assistant", "a"), say("tool", "t"), say("assistant", "b"), say("tool", "u")]) == "b"
    assert text_of([say("assistant", "a"), say("assistant", None)]) == ""
    assert text_of([{"role": "assistant", "tool_calls": []}]) == ""
    assert text_of([say("tool", "t")]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>5</answer> <answer>6", "5"),
        ("<answer>5</answer> </answer>", "5"),
        ("<answer>4 <answer>5</answer>", "5"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("</answer>5<answer>", None),
        ("<answer>5", None),
        ("5", None),
    ],
)
def test_tagged_is_the_last_closed_tag(text: str, expected: str | None) -> None:
    assert tagged(text, "answer") == expected


def test_tag_that_is_a_column_is_not_taken_for_the_option() -> None:
    with pytest.raises(TypeError, match="came from a column"):
        exact([GOLD], answer=["3"], tag=["algebra"])


# ---- exact, numeric, format_tags ------------------------------------------------------------------------------------


def test_exact_compares_characters() -> None:
    completions = ["<answer>3.0</answer>", "<answer>\n3\n</answer>", "<result>3</result>"]
    assert exact(completions, answer=["3", " 3 ", "3"]) == [0.0, 1.0, 0.0]
    assert exact(completions, answer=["3", "3", "3"], tag="result") == [0.0, 0.0, 1.0]
    assert exact([" 3 ", "is 3"], answer=["3", "3"], tag=None) == [1.0, 0.0]


def test_exact_without_a_gold_answer_has_no_verdict() -> None:
    assert exact(["<answer></answer>"], answer=[" "]) == [None]


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("3.00", "3", 1.0),
        ("first 2, then 3", "3", 1.0),
        ("3, not 2", "3", 0.0),
        ("$1,234.50", "1234.5", 1.0),
        ("-2", "-2", 1.0),
        ("\N{MINUS SIGN}2", "-2", 1.0),
        ("5-2", "2", 1.0),
        ("5 - 2", "2", 1.0),
        ("x=-2", "2", 0.0),
        ("1e3", "1000", 1.0),
        (".5", "0.5", 1.0),
        ("9007199254740992", "9007199254740993", 0.0),
        ("1e999999999", "1e999999998", 0.0),
        ("1e99999999999999999999", "3", 0.0),
        ("9" * 5000, "3", 0.0),
        ("three", "3", 0.0),
        ("nan", "3", 0.0),
        ("3", "three", None),
        ("3", "3 apples", None),
        ("3", "", None),
    ],
)
def test_numeric_compares_the_last_number(text: str, gold: str, expected: float | None) -> None:
    assert numeric([f"<answer>{text}</answer>"], answer=[gold]) == [expected]


def test_numeric_tolerance_is_inclusive_and_decimal() -> None:
    completions = ["<answer>0.3</answer>", "<answer>0.31</answer>"]
    assert numeric(completions, answer=["0.2", "0.2"], tolerance=0.1) == [1.0, 0.0]


def test_numeric_without_a_tag_reads_the_whole_text() -> None:
    assert numeric(["so 2 and 3"], answer=["3"], tag=None) == [1.0]
    assert numeric(["so 2 and 3"], answer=["3"]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "<answer>3</answer>",
        "<think>x</think>",
        "<answer>3</answer><think>x</think>",
        "ok <think>x</think><answer>3</answer>",
        "<think>x</think> so <answer>3</answer>",
        "<think>x</think><answer>3</answer> done",
        "<think>x</think><answer>3</answer><answer>3</answer>",
        "<think>x<think>y</think><answer>3</answer>",
        "<think>x</think></think><answer>3</answer>",
        "<think>x<answer>3</think></answer>",
        "<think>x</think><answer>3",
    ],
)
def test_format_tags_refuses_anything_else(text: str) -> None:
    assert format_tags([text]) == [0.0]


# ---- reasoning_gym --------------------------------------------------------------------------------------------------


def test_reasoning_gym_takes_metadata_as_json_text_and_the_task_from_it() -> None:
    metadata = [json.dumps(SUM["metadata"]), SUM["metadata"]]
    assert reasoning_gym([GOLD, GOLD], answer=["3", "4"], metadata=metadata, task=["word_sorting"] * 2) == [1.0, 0.0]


def test_reasoning_gym_falls_back_to_the_task_column() -> None:
    assert reasoning_gym([GOLD], answer=["3"], metadata=["{}"], task=["chain_sum"]) == [1.0]


def test_reasoning_gym_scores_as_the_task_does() -> None:
    dataset = gym.create_dataset("countdown", seed=1, size=1)
    item = dataset[0]
    other = f"0 + ({item['metadata']['expression']})"
    texts = [item["metadata"]["expression"], other, "garbage", "no tag"]
    completions = [f"<answer>{text}</answer>" for text in texts[:-1]] + texts[-1:]
    got = reasoning_gym(completions, answer=[item["answer"]] * 4, metadata=[json.dumps(item["metadata"])] * 4)
    assert got == [*(dataset.score_answer(text, item) for text in texts[:-1]), 0.0]
    assert got[0] == 1.0


@pytest.mark.parametrize("task", ["arc_agi", "chain_sum", "game_of_life", "prime_factorization", "word_sorting"])
def test_reasoning_gym_gold_survives_storage_as_json(task: str) -> None:
    item = gym.create_dataset(task, seed=1, size=1)[0]
    metadata = json.dumps(item["metadata"])
    assert reasoning_gym([f"<answer>{item['answer']}</answer>"], answer=[item["answer"]], metadata=[metadata]) == [1.0]


@pytest.mark.parametrize(
    ("task", "text"),
    [("prime_factorization", "two times three"), ("game_of_life", '{"a": 1}'), ("boxnet", "1"), ("coin_flip", "1e400")],
)
def test_reasoning_gym_scorer_that_chokes_on_the_text_calls_it_wrong(task: str, text: str) -> None:
    item = gym.create_dataset(task, seed=1, size=1)[0]
    with pytest.raises((ValueError, LookupError, TypeError, ArithmeticError)):
        gym.get_score_answer_fn(task)(text, item)
    assert reasoning_gym([f"<answer>{text}</answer>"], answer=[item["answer"] or ""], metadata=[item["metadata"]]) == [
        0.0
    ]


def test_reasoning_gym_entry_that_is_broken_is_not_called_a_wrong_answer() -> None:
    with pytest.raises(KeyError, match="source_dataset"):
        reasoning_gym([GOLD], answer=["3"], metadata=["{}"])
    with pytest.raises(KeyError, match="sorted_words"):
        reasoning_gym([GOLD], answer=["3"], metadata=[json.dumps({"source_dataset": "word_sorting"})])


# ---- math -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        ("\\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("it is $0.5$", "\\frac{1}{2}", 1.0),
        ("\\boxed{3\\sqrt{2}}", "3\\sqrt{2}", 1.0),
        ("\\boxed{3}", "3\\sqrt{2}", 0.0),
        ("\\boxed{(x+1)^2}", "$x^2 + 2x + 1$", 1.0),
        ("first \\boxed{4}. Then \\boxed{5}", "5", 1.0),
        ("first \\boxed{4}. Then \\boxed{5}", "4", 0.0),
        ("\\boxed{4} and \\boxed{5}", "5", 1.0),
        ("\\boxed{\\{4, 5\\}}", "\\{5, 4\\}", 1.0),
        ("\\boxed{4}, not 5", "4", 1.0),
        ("4, or rather 5", "5", 1.0),
        ("\\boxed{\\frac{1}{", "1", 0.0),
        ("no idea", "4", 0.0),
        ("\\boxed{4}", "\\boxed{4}", 1.0),
        ("\\boxed{4}", "!!!", None),
        ("\\boxed{4}", "", None),
    ],
)
def test_math_compares_by_meaning(text: str, gold: str, expected: float | None) -> None:
    assert math([text], answer=[gold]) == [expected]


def test_math_works_outside_the_main_thread() -> None:
    got: list[float | None] = []
    thread = threading.Thread(target=lambda: got.extend(math(["\\boxed{0.5}"], answer=["1/2"])))
    thread.start()
    thread.join(timeout=60)
    assert got == [1.0]
