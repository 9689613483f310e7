"""The scorers that come with the tasks of reasoning-gym."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from rewards._text import Completion, tagged, text_of

Entry = Mapping[str, Any]
Scorer = Callable[[str, Entry], float]

# Their scorers compare with the tuples of the original metadata, and JSON has only lists.
TASKS_WITH_TUPLES = frozenset({"arc_agi", "rearc"})
# What the scorers raise on answers that they did not expect.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError, RecursionError)


def reasoning_gym(
    completions: Sequence[Completion],
    answer: Sequence[str],
    metadata: Sequence[str | Mapping[str, Any]],
    task: Sequence[str] | None = None,
    tag: str | None = "answer",
    **_: Any,
) -> list[float | None]:
    """The task's own score, 0.0 to 1.0, of the text in the last `<tag>...</tag>`; 0.0 where there is no such text.

    The task is `source_dataset` in the metadata, else the column `task`. Some scorers evaluate the text as an
    expression, in this process and without a time limit. Raises what the scorer raises on an entry it cannot use.
    """
    scores: list[float | None] = []
    for index, completion in enumerate(completions):
        raw = metadata[index]
        details = json.loads(raw) if isinstance(raw, str) else raw
        name = details["source_dataset"] if task is None else details.get("source_dataset", task[index])
        details = _as_tuples(details) if name in TASKS_WITH_TUPLES else details
        entry = {"answer": answer[index], "metadata": details}
        scores.append(_score(_scorer(name), tagged(text_of(completion), tag), entry))
    return scores


def _score(scorer: Scorer, text: str | None, entry: Entry) -> float:
    # Some scorers give a little to any text, even to none.
    if not text:
        return 0.0
    try:
        return float(scorer(text, entry))
    except UNREADABLE:
        # An entry at fault fails with its own answer as well, and then the error is the user's to see.
        scorer(entry["answer"], entry)
        return 0.0


@cache
def _scorer(task: str) -> Scorer:
    scorer: Scorer = get_score_answer_fn(task)
    return scorer


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_tuples(each) for key, each in value.items()}
    return tuple(_as_tuples(each) for each in value) if isinstance(value, list) else value
