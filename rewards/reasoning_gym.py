"""The scorers that come with the tasks of reasoning-gym."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from rewards._item import Judgement, graded, item_reward, no_answer
from rewards._text import tagged

Entry = Mapping[str, Any]
Scorer = Callable[[str, Entry], float]

# Their scorers compare with the tuples of the original metadata, and JSON has only lists.
TASKS_WITH_TUPLES = frozenset({"arc_agi", "rearc"})
# What the scorers raise on answers that they did not expect.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError, RecursionError)


@item_reward
def reasoning_gym(
    text: str,
    answer: str,
    metadata: str | Mapping[str, Any],
    task: str | None = None,
    *,
    tag: str | None = "answer",
) -> Judgement:
    """The task's own score, 0 to 1, of the text in the last `<tag>...</tag>`; 0 where there is no such text.

    The task is `source_dataset` in the metadata, else the column `task`. Some scorers evaluate the text as an
    expression, without a time limit: isolation is the caller's. Raises what the scorer raises on an entry at fault.
    """
    details = json.loads(metadata) if isinstance(metadata, str) else metadata
    name = details["source_dataset"] if task is None else details.get("source_dataset", task)
    scorer = _scorer(name)
    entry: Entry = {"answer": answer, "metadata": _as_tuples(details) if name in TASKS_WITH_TUPLES else details}
    found = tagged(text, tag)
    # Some scorers give a little to any text, even to none.
    if not found:
        return no_answer(f"nothing in <{tag}>" if tag else "no text")
    try:
        return graded(float(scorer(found, entry)))
    except UNREADABLE:
        # An entry at fault fails with its own answer as well, and then the error is the user's to see.
        scorer(entry["answer"], entry)
        return graded(0.0)


@cache
def _scorer(task: str) -> Scorer:
    scorer: Scorer = get_score_answer_fn(task)
    return scorer


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_tuples(each) for key, each in value.items()}
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value
