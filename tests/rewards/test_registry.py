"""What holds for every registered reward. A new reward needs a case in `tests/rewards/cases.py`."""

import pickle
import subprocess
import sys
import time
from typing import Any

import pytest

from rewards import REGISTRY
from tests.rewards.cases import ANY, CASES, registered, scores

HOSTILE = {
    "nul": "\0<answer>\0</answer>\0",
    "surrogate": "\ud800<answer>\udfff</answer>",
    "right to left": "<answer>\u202e٤ ארבע\u202c</answer>",
    "digits of other scripts": "<answer>٤ ４ ³</answer>",
    "many openings": "<answer>" * 50_000,
    "many closings": "</answer>" * 50_000,
    "many tags": "<answer>4</answer>" * 30_000,
    "many boxes": "\\boxed{" * 50_000,
}
HUGE = {
    "letters": "a" * 1_000_000,
    "digits": "9" * 1_000_000,
    "blanks": " \n" * 500_000,
    "parentheses": "(" * 1_000_000,
    "brackets": "[" * 500_000 + "{" * 500_000,
    "asterisks": "*" * 999_999 + "x",
    "dots": "." * 999_999 + "x",
    "answers": "answer is " * 100_000,
    "fences": "```\n" * 250_000,
}
# math-verify takes long over long texts; whoever calls it sets a limit.
SLOW_PARSER = {"math", "format_length_surrogate"}


def test_every_registered_reward_has_a_case_and_only_those() -> None:
    assert set(CASES) == set(REGISTRY)


def close(value: Any) -> Any:
    return [value] if value is ANY else pytest.approx([value])


def model_of(name: str, request: pytest.FixtureRequest) -> str:
    needs = CASES[name].needs_model
    return str(request.getfixturevalue(needs)) if needs else ""


@pytest.mark.parametrize("name", CASES)
def test_gold_gets_the_top_score_as_text_and_as_a_message(name: str, request: pytest.FixtureRequest) -> None:
    case, model = CASES[name], model_of(name, request)
    messages = [[{"role": "assistant", "content": text}] for text in case.right]
    for completions in (case.right, messages):
        assert scores(name, list(completions), model) == pytest.approx([case.top] * len(completions))


@pytest.mark.parametrize("name", CASES)
def test_wrong_gets_the_bottom_score(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    if case.wrong:
        assert scores(name, case.wrong, model_of(name, request)) == pytest.approx([case.bottom] * len(case.wrong))


@pytest.mark.parametrize("name", CASES)
def test_blank_text_gets_the_documented_value(name: str, request: pytest.FixtureRequest) -> None:
    case, model = CASES[name], model_of(name, request)
    for blank in [*case.blank, [], [{"role": "assistant", "content": ""}], [{"role": "assistant"}]]:
        assert scores(name, [blank], model) == close(case.empty), blank


@pytest.mark.parametrize("name", CASES)
def test_answer_in_the_prompt_alone_does_not_count(name: str, request: pytest.FixtureRequest) -> None:
    case, model = CASES[name], model_of(name, request)
    for right in case.right:
        conversation = [{"role": "user", "content": right}, {"role": "assistant", "content": ""}]
        assert scores(name, [conversation], model, prompts=[right]) == close(case.empty)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_deterministic_and_survive_pickling(name: str, request: pytest.FixtureRequest) -> None:
    case, model = CASES[name], model_of(name, request)
    function = registered(name)
    assert pickle.loads(pickle.dumps(function)) is function
    completions = [*case.right, *case.wrong]
    assert scores(name, completions, model) == scores(name, completions, model)


@pytest.mark.parametrize("name", CASES)
def test_no_completions_no_scores(name: str, request: pytest.FixtureRequest) -> None:
    assert scores(name, [], model_of(name, request)) == []


@pytest.mark.parametrize("name", sorted(set(CASES) - SLOW_PARSER))
@pytest.mark.parametrize("kind", [*HOSTILE, *HUGE])
def test_hostile_text_gets_no_top_score_and_takes_no_time(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    case, model = CASES[name], model_of(name, request)
    text = (HOSTILE | HUGE)[kind]
    started = time.perf_counter()
    for completion in [text] if "answer" in text else [text, f"<answer>{text}</answer>"]:
        (value,) = scores(name, [completion], model)
        if not case.hostile_may_win:
            assert value is None or value < case.top
    assert time.perf_counter() - started < 20  # quadratic time would be hours


@pytest.mark.parametrize("name", CASES)
def test_module_imports_no_torch(name: str) -> None:
    module = REGISTRY[name].partition(":")[0]
    program = f"import sys, {module}\nprint(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", CASES)
def test_docstring_says_in_one_line_what_it_rewards(name: str) -> None:
    function: Any = registered(name)
    first, blank, *_ = [*function.__doc__.split("\n"), ""]
    assert 20 < len(first) < 120
    assert blank.strip() == ""
