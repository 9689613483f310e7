"""A penalty on repeated words."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rewards._batch import outcomes_of
from rewards._text import Completion, text_of
from rlvr.errors import RewardError


def repetition(
    completions: Sequence[Completion],
    outcomes: Sequence[float | None] | None = None,
    *,
    ngram: int = 3,
    max_penalty: float = -1.0,
    only_wrong: bool = False,
    verifier: str | None = None,
    verifier_args: Mapping[str, Any] | None = None,
    **_columns: Any,
) -> list[float | None]:
    """max_penalty times the share of n-grams of words that occurred before (Yeo et al. 2025, arXiv:2502.03373).

    r = max_penalty (1 - distinct / all), over the n-grams of blank-separated words in small letters. A text of fewer
    than `ngram` words has none and gets 0. With `only_wrong` right answers get 0, and no verdict is none here; which
    ones are right is told as for `cosine_length`: by the registered reward `verifier` where it is named, else by the
    `outcomes` of the run's verifier.
    """
    if ngram < 1 or max_penalty > 0:
        remedy = "ngram must be at least 1 and max_penalty at most 0"
        raise RewardError(f"reward 'repetition': ngram={ngram}, max_penalty={max_penalty}; {remedy}")
    penalties = [max_penalty * repeated_share(text_of(completion), ngram) for completion in completions]
    if not only_wrong:
        return [*penalties]
    found = outcomes_of("repetition", completions, outcomes, verifier, verifier_args, _columns)
    return [
        None if right is None else 0.0 if right else penalty for right, penalty in zip(found, penalties, strict=True)
    ]


def repeated_share(text: str, ngram: int) -> float:
    """1 - distinct / all n-grams of words; 0 where there is none."""
    words = text.lower().split()
    total = len(words) - ngram + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(islice(words, start, None) for start in range(ngram)), strict=False))) / total
