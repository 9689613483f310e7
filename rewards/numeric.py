"""Numbers compared by value."""

import re
from decimal import Context, Decimal, localcontext

from rewards._columns import as_text, not_text
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged

# A minus sign belongs to the number unless something to subtract from stands before it.
NUMBER = re.compile(r"(?:(?<![\w.)])[+-])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
# Decimals keep large integers apart that are one float; without traps an absurd exponent is infinite, not an error.
CONTEXT = Context(prec=60, traps=[])


@item_reward
def numeric(text: str, answer: str | float, *, tag: str | None = "answer", tolerance: float = 0.0) -> Judgement:
    """1 where the last number in the last `<tag>...</tag>` is at most `tolerance` away from the answer.

    `tag: null` takes the last number of the whole text. A gold answer that is not a number gives no verdict.
    """
    gold = as_text(answer)
    wanted = None if gold is None else NUMBER.fullmatch(_plain(gold))
    if wanted is None:
        return unscorable(not_text("answer", answer) if gold is None else f"the answer {gold[:80]!r} is not a number")
    found = NUMBER.findall(_plain(tagged(text, tag) or ""))
    if not found:
        return no_answer(f"no number in <{tag}>" if tag else "no number")
    with localcontext(CONTEXT):
        difference = abs(_value(found[-1]) - _value(wanted[0]))
        return graded(float(difference <= Decimal(str(tolerance))))


def _plain(text: str) -> str:
    return text.strip().replace("\N{MINUS SIGN}", "-")


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
