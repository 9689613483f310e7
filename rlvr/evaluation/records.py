"""What the samples of one prompt amount to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptRecord:
    """What the samples of one prompt amount to; plain values, so that ranks can exchange them."""

    prompt_id: int
    outcomes: tuple[float | None, ...]
    greedy_outcome: float | None
    rewards: tuple[float | None, ...]
    lengths: tuple[int, ...]
    num_truncated: int
