"""Numbers too large to compute, told by their size alone.

`9^{9^{9^9}}` would occupy sympy until the deadline. The bounds here are on the logarithm and need no such power. An
expression that is certainly larger than the answer is certainly another number; one that holds such a number beside
others cannot be compared with anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sympy import (
    Add,
    Equality,
    Expr,
    Float,
    Integer,
    Mul,
    NumberSymbol,
    Pow,
    Rational,
    UnevaluatedExpr,
    factorial,
    preorder_traversal,
)

HUGE_BITS = 2.0**24  # an integer of more bits is not worth computing
UNCOMPUTABLE_BITS = 2.0**30  # the power or factorial of more takes minutes at least
UNCOMPUTABLE_SHIFT = 2.0**40  # a power of two of more bits fits into no memory; one of fewer costs nothing
MAX_EXPONENT = 900.0  # 2 to more than this is no float: only bounded from below by 2^900, from above not at all
MAX_DEPTH = 50


@dataclass(frozen=True)
class Size:
    """A number that is not 0: its sign, and bounds on the binary logarithm of its absolute value."""

    sign: int
    low: float
    high: float  # may be infinite

    def widened(self) -> "Size":
        """For the rounding of the operations behind the bounds."""
        return Size(self.sign, self.low - abs(self.low) * 1e-9 - 1e-9, self.high + abs(self.high) * 1e-9 + 1e-9)


def is_far_larger(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether every found expression is a number of over 2^24 bits, and every wanted one is of a tenth at most."""
    if not found or not all(_is_moderate(each) for each in wanted):
        return False
    sizes = [size_of(each) for each in found]
    return all(each is not None and each.low > HUGE_BITS for each in sizes)


def holds_uncomputable(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Whether the first of the found expressions holds a power or a factorial that nobody computes, the wanted none.

    sympy multiplies such a power out whatever it stands in (a difference of two that are equal, a factor of 0, a
    logarithm), so math-verify never comes to a verdict. Relations other than an equality, whose right side is what
    counts, and sets are left to it: it may tell them apart without looking inside.
    """
    if not found or any(_uncomputable_in(each) for each in wanted):
        return False
    first = found[0].rhs if isinstance(found[0], Equality) else found[0]
    return isinstance(first, Expr) and _uncomputable_in(first)


def _uncomputable_in(expression: Any) -> bool:
    return any(_is_uncomputable(each) for each in preorder_traversal(expression) if isinstance(each, Pow | factorial))


def _is_uncomputable(expression: Pow | factorial) -> bool:
    size = size_of(expression)
    if size is None:
        return False
    base = expression.args[0]
    is_odd = isinstance(base, Integer) and int(base) & (int(base) - 1) != 0
    return size.low > (UNCOMPUTABLE_BITS if is_odd or isinstance(expression, factorial) else UNCOMPUTABLE_SHIFT)


def _is_moderate(number: Any) -> bool:
    if isinstance(number, Float):
        return math.isfinite(float(number))
    if isinstance(number, Rational):
        return int(number.p).bit_length() < HUGE_BITS / 10
    size = size_of(number)
    return size is not None and size.high < HUGE_BITS / 10


def size_of(expression: Any, depth: int = MAX_DEPTH) -> Size | None:
    """The size of a sympy expression that is a number other than 0; None where that is not known."""
    size: Size | None = None
    if depth == 0:
        return None
    if isinstance(expression, Rational) and expression.p != 0:
        logarithm = math.log2(abs(int(expression.p))) - math.log2(int(expression.q))
        size = Size(1 if expression.p > 0 else -1, logarithm, logarithm)
    elif isinstance(expression, NumberSymbol):  # such as pi
        size = Size(1, math.log2(float(expression)), math.log2(float(expression)))
    elif isinstance(expression, UnevaluatedExpr):
        size = size_of(expression.args[0], depth - 1)
    elif isinstance(expression, Mul):
        size = _of_product([size_of(each, depth - 1) for each in expression.args])
    elif isinstance(expression, Pow):
        base, exponent = expression.args
        size = _of_power(size_of(base, depth - 1), size_of(exponent, depth - 1), exponent)
    elif isinstance(expression, factorial):
        size = _of_factorial(size_of(expression.args[0], depth - 1))
    elif isinstance(expression, Add):
        size = _of_sum([size_of(each, depth - 1) for each in expression.args])
    return None if size is None or math.isnan(size.low) or math.isnan(size.high) else size.widened()


def _of_product(factors: Sequence[Size | None]) -> Size | None:
    known = [each for each in factors if each is not None]
    if len(known) < len(factors):
        return None
    return Size(
        math.prod(each.sign for each in known), sum(each.low for each in known), sum(each.high for each in known)
    )


def _of_power(base: Size | None, power: Size | None, exponent: Any) -> Size | None:
    if base is None or power is None:
        return None
    if isinstance(exponent, Rational) and abs(power.high) < MAX_EXPONENT:
        if base.sign < 0 and exponent.q != 1:
            return None
        value = int(exponent.p) / int(exponent.q)
        sign = -1 if base.sign < 0 and exponent.p % 2 else 1
        return Size(sign, *sorted((value * base.low, value * base.high)))
    if base.sign < 0 or power.sign < 0 or base.low <= 0:
        return None
    lowest = 2.0 ** min(power.low, MAX_EXPONENT)
    highest = 2.0**power.high if power.high < MAX_EXPONENT else math.inf
    return Size(1, lowest * base.low, highest * base.high)


def _of_factorial(argument: Size | None) -> Size | None:
    if argument is None or argument.sign < 0 or argument.low < 4:
        return None
    value = 2.0 ** min(argument.low, MAX_EXPONENT)
    return Size(1, value * (math.log2(value) - math.log2(math.e)), math.inf)  # n! > (n/e)^n


def _of_sum(terms: Sequence[Size | None]) -> Size | None:
    """Known where one sign clearly prevails."""
    known = [each for each in terms if each is not None]
    if len(known) < len(terms):
        return None
    first = max(known, key=lambda each: each.low)
    others = [each for each in known if each.sign != first.sign]
    high = max(each.high for each in known) + math.log2(len(known))
    if not others:
        return Size(first.sign, first.low, high)
    taken = max(each.high for each in others) + math.log2(len(others))
    return Size(first.sign, first.low - 1, high) if first.low > taken + 2 else None  # under half is taken away
