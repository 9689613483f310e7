"""Two rewards: one judges a completion at a time, the other sees the whole batch."""

from collections.abc import Sequence
from typing import Any

from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged, text_of


@item_reward
def even_number(text: str, answer: str, *, tag: str | None = "answer") -> Judgement:
    """1 where the number in the last `<tag>...</tag>` is even or odd as the answer is; else 0.

    Parameters after the text are columns of the data, those after the star are options (`args` in a recipe). The
    judgement is made in a worker process, under a deadline.
    """
    if not answer.strip().isdecimal():
        return unscorable(f"the answer {answer[:80]!r} is not a whole number")  # the data is at fault: no value
    found = tagged(text, tag) or ""
    if not found.isdecimal():
        return no_answer("no whole number")  # the completion is at fault: 0
    return graded(float(_is_even(found) == _is_even(answer)))


def _is_even(number: str) -> bool:
    """By the last digit, as a number of a million digits takes long to read."""
    return int(number.strip()[-1]) % 2 == 0


def shorter_than_group(completions: Sequence[Any], prompts: Sequence[Any], **_: Any) -> list[float | None]:
    """1 for completions that are not empty and no longer than the mean of their prompt's completions; else 0.

    Called once per step with the whole batch, in the training process and without a deadline. None is no verdict.
    """
    lengths: dict[str, list[int]] = {}
    for completion, prompt in zip(completions, prompts, strict=True):
        lengths.setdefault(str(prompt), []).append(len(text_of(completion)))
    means = {prompt: sum(values) / len(values) for prompt, values in lengths.items()}
    return [
        float(0 < len(text_of(completion)) <= means[str(prompt)])
        for completion, prompt in zip(completions, prompts, strict=True)
    ]
