"""Values of columns and options as rewards read them."""

import json
from typing import Any

from rlvr.errors import RewardError


def as_text(value: Any) -> str | None:
    """A gold answer as stripped text, numbers as Python writes them. None for blanks and for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def not_text(column: str, value: Any) -> str:
    """Why a row is unscorable, when `as_text` gave None."""
    return f"column {column!r} holds {type(value).__name__} {str(value)[:80]!r}; it must be text that is not blank"


def from_json(value: Any) -> Any:
    """Nested values may be stored as JSON text. Raises ValueError."""
    return json.loads(value) if isinstance(value, str) else value


def is_number(value: Any) -> bool:
    """An integer or a float, not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_choice(option: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises RewardError unless the option is one of its choices."""
    if value not in choices:
        raise RewardError(f"`args: {{{option}: {value}}}` of a reward is not one of {', '.join(choices)}; write one")


def check_text(option: str, value: Any) -> None:
    """Raises RewardError where a column of the data set took the place of a text option."""
    if not isinstance(value, str):
        remedy = f"set `args: {{{option}: ...}}` of the reward to text, or rename a column of that name"
        raise RewardError(f"`{option}` is {type(value).__name__}; {remedy}")
