"""The format of thinking, then answering."""

import re
from collections.abc import Sequence
from typing import Any

from rewards._text import Completion, text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def format_tags(completions: Sequence[Completion], **_: Any) -> list[float | None]:
    """1.0 where the text is one `<think>...</think>`, then one `<answer>...</answer>`, and nothing else but blanks."""
    return [_score(text_of(completion)) for completion in completions]


def _score(text: str) -> float:
    return float(all(text.count(tag) == 1 for tag in TAGS) and FORMAT.fullmatch(text) is not None)
