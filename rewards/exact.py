"""The answer, character for character."""

from collections.abc import Sequence
from typing import Any

from rewards._text import Completion, tagged, text_of


def exact(
    completions: Sequence[Completion], answer: Sequence[str], tag: str | None = "answer", **_: Any
) -> list[float | None]:
    """1.0 where the text in the last `<tag>...</tag>` is the answer, outer blanks aside.

    `tag: null` takes the whole text. An empty gold answer gives no verdict.
    """
    return [
        _score(text_of(completion), gold.strip(), tag) for completion, gold in zip(completions, answer, strict=True)
    ]


def _score(text: str, gold: str, tag: str | None) -> float | None:
    return float(tagged(text, tag) == gold) if gold else None
