"""One case per registered reward: what it is called with, and completions that deserve its best and its worst value."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from rewards import REGISTRY

PROMPT = "1 + 2 = ? (a prompt with <answer>3</answer> and \\boxed{3} in it)"
GOLD = "<think>1 + 2 = 3</think>\n<answer> 3 </answer>"
WRONG = "<think>3</think> <answer>4</answer>"
SUM = {"answer": "3", "metadata": {"source_dataset": "chain_sum"}}
ANY = pytest.approx(0.0, abs=1e6)  # whatever a model says
BLANK = ["", "  \n", "<answer></answer>", "<think></think>"]


@dataclass(frozen=True)
class Case:
    """Columns hold the value of one row; `needs_model` asks for a model on disk as the option `model`."""

    right: list[str]
    wrong: list[str] = field(default_factory=lambda: [WRONG])
    blank: list[str] = field(default_factory=lambda: BLANK)
    columns: Mapping[str, Any] = field(default_factory=lambda: SUM)
    options: Mapping[str, Any] = field(default_factory=dict)
    top: float = 1.0
    bottom: float = 0.0
    empty: Any = 0.0
    needs_model: str = ""
    hostile_may_win: bool = False  # the reward does not look at what the text says


CASES = {
    "code": Case(
        ["```python\nprint(1 + 2)\n```", "<answer>print(3)</answer>"],
        columns={"tests": {"stdin_stdout": [{"stdin": "", "stdout": "3"}]}},
        options={"backend": "unsafe_subprocess", "timeout_s": 20.0, "total_timeout_s": 20.0},
    ),
    "exact": Case([GOLD]),
    "format_tags": Case(
        [GOLD, " <think> </think><answer>anything</answer>\n"], ["3"], ["", " \n", "<answer></answer>"], columns={}
    ),
    "math": Case([GOLD, "the sum is \\boxed{3}", "$\\frac{6}{2}$"]),
    "numeric": Case([GOLD, "<answer>it is 3.0</answer>"]),
    "reasoning_gym": Case([GOLD]),
    "multiple_choice": Case(
        ["<answer>B</answer>", "So the answer is (b).", "<answer>Three</answer>", "\\boxed{B}"],
        ["<answer>A</answer>", "B", "<answer>A or B</answer>"],
        columns={"answer": "B", "choices": ["two", "three"]},
    ),
    "regex": Case(
        ["so the result: 3", "result: 4, no, result:  3 "],
        ["result: 4", "3"],
        columns={"answer": "3"},
        options={"pattern": r"result:\s*(?P<answer>\d+)"},
    ),
    "json_schema": Case(
        ['{"sum": 3}', '<answer>{"sum": 3}</answer>', 'Here:\n```json\n{"sum": 3}\n```'],
        ['{"sum": "3"}', "[3]"],
        columns={"json_schema": {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}},
    ),
    "countdown": Case(
        ["<answer>2 + 1</answer>", "<answer>(1+2) = 3</answer>"],
        ["<answer>3</answer>", "<answer>1+1+1</answer>", "2 + 1"],
        columns={"numbers": [1, 2], "target": 3},
    ),
    "ifeval": Case(
        ["the sum is three"],
        ["the sum, three"],
        ["", " \n"],
        columns={"instructions": [{"id": "punctuation:no_comma", "kwargs": None}]},
        hostile_may_win=True,
    ),
    # Below, the top and bottom values belong to the five tokens of `TOKENS`.
    "soft_overlong": Case(
        [GOLD, WRONG, ""], [], columns={}, options={"max_length": 10, "cache": 4}, top=0.0, hostile_may_win=True
    ),
    "cosine_length": Case(
        [GOLD], options={"max_length": 30, "verifier": "exact"}, top=1.9330127, bottom=-9.3301270, empty=-9.3301270
    ),
    "repetition": Case(
        [GOLD, "one two", ""],
        ["a a a a a a", "b B b B b b"],
        columns={},
        options={"ngram": 1, "max_penalty": -1.2},
        top=0.0,
        bottom=-1.0,
        hostile_may_win=True,
    ),
    "format_length_surrogate": Case(
        ["so \\boxed{3}"], ["so 3", "\\boxed{", "\\boxed{ }"], columns={}, options={"max_length": 10}, top=2.0
    ),
    # Alone in its group, any answer is the majority.
    "majority": Case([GOLD], [], columns={}, empty=None, hostile_may_win=True),
    # Alone, a phrasing has no verdict.
    "co_reward": Case([], [], columns={"pair_id": 1}, empty=None),
    # Their numbers are tested beside their models; here only that they hold for the same things as the others.
    "rm": Case([], [], columns={}, empty=ANY, needs_model="classifier", hostile_may_win=True),
    "reference_probability": Case(
        [],
        ["no tag", "<answer>"],
        ["", " \n"],
        columns={"answer": "3"},
        needs_model="language_model",
        hostile_may_win=True,
    ),
}


def registered(name: str) -> Callable[..., list[float | None]]:
    module, _, function = REGISTRY[name].partition(":")
    loaded: Callable[..., list[float | None]] = getattr(importlib.import_module(module), function)
    return loaded


def scores(name: str, completions: list[Any], model: str = "", **other: Any) -> list[float | None]:
    """Called as the trainer does: with every column, and more than the function asks for."""
    case = CASES[name]
    given: dict[str, Any] = {
        "prompts": [PROMPT] * len(completions),
        "completion_ids": [[7] * 5] * len(completions),
        "trainer_state": None,
        "difficulty": ["hard"] * len(completions),
        **{column: [value] * len(completions) for column, value in case.columns.items()},
        **case.options,
        **({"model": model} if case.needs_model else {}),
        **other,
    }
    return registered(name)(completions, **given)
