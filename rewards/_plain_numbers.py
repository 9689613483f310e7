"""Answers that are plain numbers, compared exactly.

Only forms that math-verify takes for the same number are recognised, and only comparisons are made whose result it
shares; `tests/rewards/test_math_agrees.py` holds both against it.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 15  # as many as a double holds
# math-verify rounds to 6 places where a decimal is involved; closer than this the comparison is left to it.
NEAR = Fraction(1, 10**4)

INTEGER = r"-?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)"
IN_BOX = re.compile(
    rf"(?P<integer>{INTEGER})|(?P<decimal>-?\d+\.\d+)|(?P<slashed>-?\d+/\d+)|(?P<sign>-?)\\[dt]?frac{{(?P<top>-?\d+)}}{{(?P<bottom>\d+)}}"
)
BARE = re.compile(r"(?P<integer>\d+)|(?P<decimal>\d+\.\d+)")
# What follows a box must not look like the end of another, nor like the sentence that the parser prefers to boxes.
TAIL = re.compile(r"[^{}\\]*")


@dataclass(frozen=True)
class PlainNumber:
    """A number, and whether it is written with a decimal point."""

    value: Fraction
    decimal: bool


def last_box(text: str) -> str | None:
    r"""What is in the box that `text` begins with, if math-verify is sure to take just that; else None."""
    opening = "\\boxed{"
    if not text.startswith(opening):
        return None
    depth = 1
    for end in range(len(opening), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            content, tail = text[len(opening) : end], text[end + 1 :]
            is_sure = TAIL.fullmatch(tail) and "hope" not in tail and "\\boxed" not in content
            return content if is_sure and content.count("\\{") == content.count("\\}") == 0 else None
    return None


def plain_number(text: str, box: str | None) -> PlainNumber | None:
    """The number in the box, or without any box the whole text where that is a number; else None."""
    match = BARE.fullmatch(text.strip(" \n")) if box is None else IN_BOX.fullmatch(box.strip(" "))
    if match is None or sum(each.isdigit() for each in match[0]) > MAX_DIGITS or not match[0].isascii():
        return None
    groups = {name: value for name, value in match.groupdict().items() if value is not None}
    if "top" in groups:
        if int(groups["bottom"]) == 0:
            return None
        sign = -1 if groups["sign"] else 1
        return PlainNumber(sign * Fraction(int(groups["top"]), int(groups["bottom"])), decimal=False)
    if "slashed" in groups:
        top, bottom = groups["slashed"].split("/")
        return None if int(bottom) == 0 else PlainNumber(Fraction(int(top), int(bottom)), decimal=False)
    number = (groups.get("integer") or groups["decimal"]).replace(",", "")
    return PlainNumber(Fraction(number), decimal="decimal" in groups)


def same_number(found: PlainNumber | None, wanted: PlainNumber | None) -> bool | None:
    """Whether the two are equal; None where only math-verify can tell."""
    if found is None or wanted is None:
        return None
    if found.value == wanted.value:
        return True
    if (found.decimal or wanted.decimal) and abs(found.value - wanted.value) < NEAR:
        return None
    return False
