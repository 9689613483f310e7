"""Mathematical expressions compared by meaning."""

import threading
from collections.abc import Sequence
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from rewards._text import Completion, text_of

LIMIT_SECONDS = 5
EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def math(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float | None]:
    r"""1.0 where the last `\boxed{}`, or without one the last expression, equals the answer.

    A gold answer that does not parse gives no verdict. math-verify's time limit is a signal, which only the main thread
    gets: elsewhere an expression that takes forever to compute, such as `9^{9^9}`, holds up the run.
    """
    golds = {text: _parsed(_as_latex(text)) for text in set(answer)}
    return [_score(text_of(completion), golds[gold]) for completion, gold in zip(completions, answer, strict=True)]


def _score(text: str, gold: list[Any]) -> float | None:
    if not gold:
        return None
    # The parser would take boxes that stand close together for one set.
    last_box = max(text.rfind("\\boxed"), 0)
    return float(verify(gold, _parsed(text[last_box:]), timeout_seconds=_time_limit()))


def _parsed(text: str) -> list[Any]:
    parsed: list[Any] = parse(text, EXTRACTION, fallback_mode="no_fallback", parsing_timeout=_time_limit())
    return parsed


def _time_limit() -> int | None:
    return LIMIT_SECONDS if threading.current_thread() is threading.main_thread() else None


def _as_latex(gold: str) -> str:
    """Without delimiters only plain numbers are found, and of `3\\sqrt{2}` the 3."""
    return gold if "\\boxed" in gold or "$" in gold else f"\\boxed{{{gold}}}"
