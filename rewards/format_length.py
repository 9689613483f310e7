"""Format and length in place of labels."""

from collections.abc import Sequence

from math_verify import LatexExtractionConfig, parse

from rewards._batch import boxed, lengths_of
from rewards._item import Judgement, Status, item_reward
from rlvr.errors import RewardError

MAX_ANSWER_CHARACTERS = 1000
EXTRACTION = (LatexExtractionConfig(boxed_match_priority=0),)


@item_reward
def format_length_surrogate(
    text: str, completion_ids: Sequence[int], *, max_length: int = 3072, peak: float = 0.5
) -> Judgement:
    r"""A parseable answer and a middling length, without labels (Xin et al. 2025, arXiv:2505.19439).

    With u = tokens / max_length and p = peak: f(u) = 1 - (1 - u/p)^2 for u <= p, else 1 - 2 ((u - p) / (1 - p))^2.
    R = (soft + ans) / 2 + f(u) where ans = 1, else min(0, f(u)). ans is 1 if the last `\boxed{}` closes and math-verify
    parses it. soft is our reading of "softer format checks": the mean of [there is exactly one `\boxed`] and [the
    braces of the text balance]. Best is 2, at u = p. It never sees the right answer: log a true verifier beside it and
    stop early. Parsing has no time limit of its own: isolation is the caller's.
    """
    if not 0 < peak < 1:
        raise RewardError(f"reward 'format_length_surrogate': peak is {peak}; it must lie between 0 and 1")
    (length,) = lengths_of("format_length_surrogate", [completion_ids], max_length)
    shape = length_shape(length / max_length, peak)
    if not _parses(boxed(text)):
        return Judgement(min(0.0, shape), Status.NO_ANSWER, "no answer in \\boxed{} that parses")
    soft = ((text.count("\\boxed") == 1) + (text.count("{") == text.count("}"))) / 2
    value = 0.5 * (soft + 1) + shape
    return Judgement(value, Status.CORRECT if value >= 1 else Status.WRONG)


def length_shape(used: float, peak: float) -> float:
    """f(u): 0 at no length, 1 at the peak, -1 at the limit, and lower beyond."""
    return 1 - (1 - used / peak) ** 2 if used <= peak else 1 - 2 * ((used - peak) / (1 - peak)) ** 2


def _parses(answer: str | None) -> bool:
    if not answer or len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    return bool(parse(f"\\boxed{{{answer}}}", EXTRACTION, fallback_mode="no_fallback", parsing_timeout=None))
