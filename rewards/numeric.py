"""Numbers compared by value."""

import re
from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

from rewards._text import Completion, tagged, text_of

# A minus sign belongs to the number unless something to subtract from stands before it.
NUMBER = re.compile(r"(?:(?<![\w.)])[+-])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
# Decimals keep large integers apart that are one float; without traps an absurd exponent is infinite, not an error.
CONTEXT = Context(prec=60, traps=[])


def numeric(
    completions: Sequence[Completion],
    answer: Sequence[str],
    tag: str | None = "answer",
    tolerance: float = 0.0,
    **_: Any,
) -> list[float | None]:
    """1.0 where the last number in the last `<tag>...</tag>` is within `tolerance` of the answer.

    `tag: null` takes the last number of the whole text. A gold answer that is not a number gives no verdict.
    """
    return [
        _score(text_of(completion), gold, tag, tolerance) for completion, gold in zip(completions, answer, strict=True)
    ]


def _score(text: str, gold: str, tag: str | None, tolerance: float) -> float | None:
    wanted = NUMBER.fullmatch(_plain(gold))
    if wanted is None:
        return None
    found = NUMBER.findall(_plain(tagged(text, tag) or ""))
    if not found:
        return 0.0
    with localcontext(CONTEXT):
        difference = abs(_value(found[-1]) - _value(wanted[0]))
        return float(difference <= Decimal(str(tolerance)))


def _plain(text: str) -> str:
    return text.strip().replace("\N{MINUS SIGN}", "-")


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
