"""Mathematical expressions compared by meaning."""

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rewards._columns import as_text, not_text
from rewards._item import ItemReward, Judgement, graded, no_answer, unscorable
from rewards._plain_numbers import last_box, plain_number, same_number
from rewards._sizes import holds_uncomputable, is_far_larger

EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
# Only what is in a box, so that a box that does not parse is not passed over.
IN_BOX = (LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),)
# One question for each kind of comparison.
PREPARATION = (
    ("\\frac{2}{4}\\sqrt{3}", "\\frac{\\sqrt{3}}{2}"),
    ("x^2+3x+2", "(x+1)(x+2)"),
    ("\\{1,2\\}", "\\{2,3\\}"),
    ("(1,2]", "(1,3]"),
    ("x=1", "y=2"),
    ("2\\pi+1", "7.28"),
)

# That its own time limits are off is by intent; both loggers say so at the first call.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class MathReward(ItemReward):
    """An `ItemReward` whose reference is a bare expression, which is no answer outside a box."""

    def prepare(self) -> None:
        """Makes math-verify compile its patterns and sympy load its parts, before workers are forked."""
        for found, gold in PREPARATION:
            self.judge(f"\\boxed{{{found}}}", gold)

    def gold_text(self, answer: str, options: Mapping[str, Any]) -> str:
        """The reference as a completion that gives it."""
        return _as_latex(answer)


@MathReward
def math(text: str, answer: str | float) -> Judgement:
    r"""1 where the last `\boxed{}`, or without one the last expression, equals the answer in the eyes of math-verify.

    A gold answer that does not parse gives no verdict. Plain numbers are compared without math-verify, and a number
    astronomically larger than the answer is wrong without being computed; an expression that holds one, such as
    `9^{9^9} - 9^{9^9}`, is no answer. math-verify's own time limits are off, as they work in the main thread only:
    another expression that takes forever, such as an integral, is stopped by the limits of the run's workers, and by
    nothing when this function is called directly.
    """
    gold = as_text(answer)
    if gold is None:
        return unscorable(not_text("answer", answer))
    # The parser would take boxes that stand close together for one set.
    found = text[max(text.rfind("\\boxed"), 0) :]
    box = last_box(found)
    quick = same_number(plain_number(found, box), plain_number(_as_latex(gold), last_box(_as_latex(gold))))
    if quick is not None:
        return graded(float(quick))
    expressions = _parsed_gold(gold)
    if not expressions:
        return unscorable(f"the answer {gold[:80]!r} is not an expression")
    if box is not None and box == last_box(_as_latex(gold)) and (equals_itself := _equals_itself(gold)) is not None:
        return graded(float(equals_itself))
    answers = _parsed(found)
    if not answers:
        return no_answer("no expression")
    if is_far_larger(answers, expressions):
        return graded(0.0)
    if holds_uncomputable(answers, expressions):
        return no_answer("a number of too many digits to compute")
    return graded(float(verify(expressions, answers, timeout_seconds=None)))


@lru_cache(maxsize=4096)
def _parsed_gold(gold: str) -> list[Any]:
    return _parsed(_as_latex(gold))


@lru_cache(maxsize=4096)
def _equals_itself(gold: str) -> bool | None:
    """What math-verify says of two boxes of the same characters, not always True; None unless it looks just there."""
    if "answer" in gold.lower() or not _parsed(_as_latex(gold), IN_BOX):
        return None
    return bool(verify(_parsed_gold(gold), _parsed(_as_latex(gold)), timeout_seconds=None))


def _parsed(text: str, extraction: tuple[Any, ...] = EXTRACTION) -> list[Any]:
    parsed: list[Any] = parse(text, extraction, fallback_mode="no_fallback", parsing_timeout=None)
    return parsed


def _as_latex(gold: str) -> str:
    """Without delimiters only plain numbers are found, and of `3\\sqrt{2}` the 3."""
    return gold if "\\boxed" in gold or "$" in gold else f"\\boxed{{{gold}}}"
