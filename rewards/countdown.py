"""The countdown game: reach a number with given numbers and the four operations."""

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from rewards._columns import check_choice, from_json, is_number
from rewards._item import Judgement, graded, item_reward, no_answer, unscorable
from rewards._text import tagged

USES = ("exactly", "at_most")
MAX_CHARACTERS = 500  # bounds the parser's nesting and the digits of every result
ALLOWED = re.compile(r"[0-9+\-*/() ]+")
SIGNS = str.maketrans(
    {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "\n": " ", "\t": " ", "$": " "}
)
WORDS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": ""}
OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@item_reward
def countdown(
    text: str,
    target: float,
    numbers: Sequence[float] | str | None = None,
    nums: Sequence[float] | str | None = None,
    *,
    tag: str | None = "answer",
    use: str = "exactly",
) -> Judgement:
    """1 where the expression in the last `<tag>...</tag>` makes the target from the given numbers; else 0.

    Every number of the column `numbers` (or `nums`) is used exactly once, with `use: at_most` at most once; whole
    numbers, `+ - * /`, a minus sign and parentheses are all there is. `... = target` may follow, and must be true.
    Values are exact fractions, so 8 / (3 - 8 / 3) is 24. Expressions longer than 500 characters are wrong.
    """
    check_choice("use", use, USES)
    given = numbers if numbers is not None else nums
    if given is None:
        return unscorable("there are no numbers; add a column `numbers` (or `nums`)")
    try:
        pool = Counter(abs(_fraction(each)) for each in from_json(given))
        wanted = _fraction(target)
    except (ValueError, TypeError, OverflowError) as error:
        return unscorable(f"numbers {str(given)[:80]!r} and target {str(target)[:80]!r} must be numbers: {error}")
    found = tagged(text, tag)
    if not found:
        return no_answer(f"nothing in <{tag}>" if tag else "no text")
    left, equals, right = _plain(found).partition("=")
    try:
        value, used = _evaluate(left)
        stated = _evaluate(right)[0] if equals else value
    except (ValueError, ZeroDivisionError) as error:
        return Judgement(0.0, graded(0.0).status, str(error))
    fits = used == pool if use == "exactly" else used <= pool
    return graded(float(fits and value == wanted == stated))


def _fraction(value: Any) -> Fraction:
    if isinstance(value, str):
        return Fraction(int(value))
    if not is_number(value):
        raise TypeError(f"{type(value).__name__} {str(value)[:80]!r} is not a number")
    return Fraction(value)


def _plain(found: str) -> str:
    """At most a little more than is allowed, in the characters of Python's operators."""
    plain = found[: 4 * MAX_CHARACTERS]
    for word, sign in WORDS.items():
        plain = plain.replace(word, sign)
    return plain.translate(SIGNS).strip() if len(found) <= 4 * MAX_CHARACTERS else found


def _evaluate(text: str) -> tuple[Fraction, Counter[Fraction]]:
    """The value of an expression, and the numbers in it. Raises ValueError or ZeroDivisionError."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS or not ALLOWED.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not an expression of numbers, + - * / and parentheses")
    try:
        tree = ast.parse(text, mode="eval").body
        used: Counter[Fraction] = Counter()
        return _value(tree, used), used
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:40]!r} is not an expression: {type(error).__name__}") from error


def _value(node: ast.expr, used: Counter[Fraction]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used[Fraction(node.value)] += 1
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError(f"{type(node).__name__} is not one of + - * /")
