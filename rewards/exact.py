"""The answer, character for character."""

from rewards._columns import as_text, not_text
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged


@item_reward
def exact(text: str, answer: str, *, tag: str | None = "answer") -> Judgement:
    """1 where the text in the last `<tag>...</tag>` is the answer, outer blanks aside; else 0.

    `tag: null` takes the whole text. A number as the gold answer is compared as Python writes it; an empty gold answer
    gives no verdict.
    """
    gold = as_text(answer)
    if gold is None:
        return unscorable(not_text("answer", answer))
    found = tagged(text, tag)
    if not found:
        return no_answer(f"nothing in <{tag}>" if tag else "no text")
    return graded(float(found == gold))
