"""For each shipped reward a row to try it on, and what it should say of the right answer and of silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

THOUGHT = "<think>1 + 2 = 3</think> <answer>3</answer>"  # seven words, which stand in for tokens
SUM = {"prompt": "1 + 2 = ?", "answer": "3"}


@dataclass(frozen=True)
class Example:
    """`gold` is None where the reward says itself how its reference looks. `top` and `empty` are None for any number.

    `companions` are rows, with completions, that the reward needs beside the one that is looked at.
    """

    gold: str | None = None
    row: Mapping[str, Any] = field(default_factory=lambda: SUM)
    options: Mapping[str, Any] = field(default_factory=dict)
    top: float | None = 1.0
    empty: float | None = 0.0
    companions: tuple[Mapping[str, Any], ...] = ()
    needs: str = ""  # the option without which there is nothing to try, and what it stands for


OTHERS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "group": ({**SUM, "completion": THOUGHT}, {**SUM, "completion": THOUGHT}),
    "phrasing": ({"prompt": "2 + 1 = ?", "pair_id": 1, "completion": "\\boxed{3}"},),
}

EXAMPLES = {
    "exact": Example(),
    "numeric": Example(),
    "math": Example(),
    "reasoning_gym": Example(row={**SUM, "metadata": {"source_dataset": "chain_sum"}}),
    "multiple_choice": Example(row={"answer": "B", "choices": ["two", "three"]}),
    "regex": Example("result: 3", options={"pattern": r"result:\s*(?P<answer>\d+)"}),
    "json_schema": Example(
        '{"sum": 3}',
        {"json_schema": {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}},
    ),
    "countdown": Example("<answer>2 + 1</answer>", {"numbers": [1, 2], "target": 3}),
    "format_tags": Example(THOUGHT),
    "ifeval": Example("the sum is three", {"instructions": [{"id": "punctuation:no_comma", "kwargs": None}]}),
    "code": Example(
        "```python\nprint(1 + 2)\n```", {"tests": {"stdin_stdout": [{"stdin": "", "stdout": "3"}]}}, {"timeout_s": 2.0}
    ),
    "soft_overlong": Example(THOUGHT, options={"max_length": 20, "cache": 4}, top=0.0),
    "cosine_length": Example(
        THOUGHT, options={"max_length": 28, "verifier": "exact"}, top=1.853553390593274, empty=-10.0
    ),
    "repetition": Example(THOUGHT, top=0.0),
    "format_length_surrogate": Example("so the sum is \\boxed{3}", {}, {"max_length": 10}, top=2.0),
    "majority": Example(THOUGHT, companions=OTHERS["group"]),
    "co_reward": Example("\\boxed{3}", {"prompt": "1 + 2 = ?", "pair_id": 1}, companions=OTHERS["phrasing"]),
    "rm": Example(THOUGHT, top=None, empty=None, needs="model: FOLDER or Hub id of a sequence-classification model"),
    "reference_probability": Example(THOUGHT, top=None, needs="model: FOLDER or Hub id of a causal language model"),
}

OWN = Example("<answer>42</answer>", {"prompt": "6 * 7 = ?", "answer": "42"})  # for a reward that is not shipped
