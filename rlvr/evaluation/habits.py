"""Four habits of those who solve problems, counted in completions: arXiv 2503.01307.

The paper has a language model count them. `phrase_counts` is a stand-in that needs none: it counts English phrases that
often go with a habit, misses what is put otherwise, and is for comparing models that write alike, not for absolute
numbers.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence

from rlvr.evaluation.estimators import Estimate, estimate

HABITS = ("verification", "backtracking", "subgoal_setting", "backward_chaining")

Count = Callable[[str], Mapping[str, int]]  # a completion's counts by habit

PHRASES = {
    "verification": (
        r"let(?:'s| us| me) (?:check|verify|confirm)",
        r"(?:double|re)-?\s?check",
        r"to (?:check|verify)\b",
        r"check(?:ing)? (?:if|that|whether|this|the|my)",
        r"plug(?:ging)? (?:it|this|that|these) (?:back )?in",
    ),
    "backtracking": (
        r"\bwait\b",
        r"(?:doesn't|does not|didn't|did not|won't|will not) work",
        r"let(?:'s| us| me) (?:try (?:again|another|a different)|start over|go back)",
        r"i made a mistake",
        r"that(?:'s| is) (?:wrong|not right|incorrect)",
    ),
    "subgoal_setting": (
        r"\b(?:first|next),? (?:we|i|let)\b",
        r"\bstep \d+",
        r"to (?:do|solve) this,? (?:we|i)\b",
        r"break (?:it|this|the problem) (?:down|into)",
    ),
    "backward_chaining": (
        r"work(?:ing)? back(?:ward|wards)?\b",
        r"start(?:ing)? (?:from|with) the (?:target|goal|answer|result|end)",
        r"to (?:get|reach|make) (?:to )?(?:the target|\d+),? (?:we|i) (?:need|could|can|would)",
    ),
}
_PATTERNS = {habit: re.compile("|".join(phrases), re.IGNORECASE) for habit, phrases in PHRASES.items()}


def phrase_counts(text: str) -> dict[str, int]:
    """How often each habit's phrases occur in the text, by habit."""
    plain = text.replace("’", "'")
    return {habit: len(pattern.findall(plain)) for habit, pattern in _PATTERNS.items()}


def mean_habits(
    completions: Sequence[Sequence[str]],
    count: Count = phrase_counts,
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Estimate]:
    """The mean over prompts of the mean count per completion, by habit, from the completions of each of N prompts."""
    counts = [[count(text) for text in texts] for texts in completions]
    return {
        habit: estimate([sum(c[habit] for c in each) / len(each) for each in counts], seed=seed, clusters=clusters)
        for habit in HABITS
    }
