"""A penalty that grows as a completion nears the limit on its length."""

from collections.abc import Sequence
from typing import Any

from rewards._batch import lengths_of
from rewards._text import Completion
from rlvr.errors import RewardError


def soft_overlong(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_length: int,
    cache: int,
    **_: Any,
) -> list[float | None]:
    """0 up to max_length - cache tokens, falling to -1 at max_length (DAPO, Yu et al. 2025, arXiv:2503.14476).

    With L tokens: 0 for L <= max_length - cache; ((max_length - cache) - L) / cache up to max_length; -1 beyond. Paper:
    max_length 20480, cache 4096. Assumes that `max_length` is the limit of sampling, so that only truncated
    completions get the whole -1. Add it to a verifier's reward; alone it teaches silence.
    """
    if isinstance(cache, bool) or not isinstance(cache, int) or not 0 < cache <= max_length:
        raise RewardError(f"reward 'soft_overlong': cache is {cache!r}; it must be 1 to max_length={max_length} tokens")
    free = max_length - cache
    return [
        max(-1.0, (free - length) / cache) if length > free else 0.0
        for length in lengths_of("soft_overlong", completion_ids, max_length)
    ]
