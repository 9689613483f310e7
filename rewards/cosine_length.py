"""A reward for being right that depends on the length along a cosine."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewards._batch import lengths_of, outcomes_of
from rewards._text import Completion


def cosine_length(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    outcomes: Sequence[float | None] | None = None,
    *,
    max_length: int,
    verifier: str | None = None,
    verifier_args: Mapping[str, Any] | None = None,
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceed: float = -10.0,
    margin: int = 16,
    **_columns: Any,
) -> list[float | None]:
    """Right answers earn more when short, wrong ones lose less when long (Yeo et al. 2025, arXiv:2502.03373).

    With L tokens: r(L) = r_L + (r_0 - r_L) (1 + cos(pi L / max_length)) / 2, where (r_0, r_L) is `right` or `wrong`:
    the values at no token and at max_length. From L + margin >= max_length on it is `exceed`, whatever the answer.

    Right is what the verifier of the run says, whose `outcomes` (1 or above) the trainer gives. With `verifier`, the
    name of a registered reward, it is what that one says when called with the columns and `verifier_args`, in this
    process; where this reward is itself the verifier it needs one. No verdict there is none here. The defaults are the
    paper's, for PPO without scaling by the group: an empty wrong completion gets -10.
    """
    lengths = lengths_of("cosine_length", completion_ids, max_length)
    found = outcomes_of("cosine_length", completions, outcomes, verifier, verifier_args, _columns)
    values: list[float | None] = []
    for length, outcome in zip(lengths, found, strict=True):
        if outcome is None:
            values.append(None)
        elif length + margin >= max_length:
            values.append(exceed)
        else:
            at_none, at_limit = right if outcome else wrong
            values.append(at_limit + 0.5 * (at_none - at_limit) * (1 + math.cos(math.pi * length / max_length)))
    return values
