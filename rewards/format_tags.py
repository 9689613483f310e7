"""The format of thinking, then answering."""

from collections.abc import Sequence

from rewards._columns import check_choice
from rewards._item import Judgement, graded, item_reward, no_answer

MODES = ("strict", "soft")


@item_reward
def format_tags(text: str, *, mode: str = "strict", tags: Sequence[str] = ("think", "answer")) -> Judgement:
    """Whether the text is one `<think>...</think>`, then one `<answer>...</answer>`, and nothing else but blanks.

    `mode: strict` gives 1 or 0. `mode: soft` gives part of it for every tag: of the 2 * len(tags) opening and closing
    tags, the share that occurs exactly once, in whatever order. Other `tags` replace think and answer, in their order.
    """
    check_choice("mode", mode, MODES)
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    once = [text.count(mark) == 1 for mark in marks]
    if not any(once):
        return no_answer("none of the tags occurs exactly once")
    if mode == "soft":
        return graded(sum(once) / len(once))
    return graded(float(all(once) and _only_blocks(text, tags)))


def _only_blocks(text: str, tags: Sequence[str]) -> bool:
    rest = text.strip()
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if not rest.startswith(opening):
            return False
        _, _, rest = rest[len(opening) :].partition(closing)
        rest = rest.lstrip()
    return not rest
