"""A pattern that the completion must match."""

import re
from functools import cache

from rewards._columns import as_text, check_text, not_text
from rewards._item import ItemReward, Judgement, graded, no_answer, unscorable
from rewards._text import tagged
from rlvr.errors import RewardError

GROUP = "answer"


class RegexReward(ItemReward):
    """An `ItemReward` whose reference is part of a completion, and only the pattern knows of which."""

    reference_is_right = False


@RegexReward
def regex(text: str, answer: str | None = None, *, pattern: str, tag: str | None = None) -> Judgement:
    """1 where the text fits the option `pattern`, in the syntax of Python's `re`; else 0.

    A pattern with a group called `answer`, such as `result: (?P<answer>[0-9]+)`, is searched for: the group of its last
    match must be the answer, character for character, outer blanks aside. Without that group the pattern must match
    the whole text, outer blanks aside, and the column `answer` plays no part. With `tag` only the text in the last
    `<tag>...</tag>` is looked at. A pattern that backtracks without end is the caller's to interrupt.
    """
    check_text("pattern", pattern)
    compiled = _compiled(pattern)
    found = tagged(text, tag)
    if GROUP not in compiled.groupindex:
        return graded(float(compiled.fullmatch(found) is not None)) if found else no_answer("no text")
    gold = as_text(answer)
    if gold is None:
        return unscorable(not_text("answer", answer))
    captured = ""
    for match in compiled.finditer(found or ""):
        captured = (match[GROUP] or "").strip()
    return graded(float(captured == gold)) if captured else no_answer("the pattern finds no answer")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        remedy = "mend `args: {pattern: ...}`"
        raise RewardError(f"the reward `regex` cannot compile {pattern!r}: {error}; {remedy}") from error
