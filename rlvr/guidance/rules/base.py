"""What a guidance rule decides; the stage does the rest."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlvr.sampling.groups import Group

Outcomes = Sequence[float | None]


@dataclass(frozen=True)
class Roles:
    """What becomes of the rows of a group: those in neither tuple are sampled again with help."""

    kept: tuple[int, ...] = ()  # places that keep their unhinted completion
    resampled: tuple[int, ...] = ()  # places that are sampled again without help


def pass_rate(outcomes: Outcomes) -> float:
    """Of the completions with a verdict; 0 without any."""
    scorable = [outcome for outcome in outcomes if outcome is not None]
    return sum(scorable) / len(scorable) if scorable else 0.0


class Rule:
    """One way to help: the whole group is sampled again with a hint, and replaces the old one if any of it is right.

    `rounds` is the number of different kinds of help in one step, from little to much.
    """

    rounds = 1
    uses_hints = True  # of a column, a file or the policy; else `help_for` has its own source
    default_template = "{prompt}\n\nHint: {hint}"

    def level(self, group: Group, attempt: int) -> int:
        """Which hint the group gets at this attempt: 1 is the least help. `attempt` counts from 0, retries included."""
        return attempt + 1

    def roles(self, group: Group, rng: random.Random) -> Roles:
        """What becomes of the rows of the group."""
        return Roles()

    def accepts(self, outcomes: Outcomes) -> bool:
        """Whether the new group, with these outcomes, takes the place of the old one."""
        return pass_rate(outcomes) > 0

    def help_for(self, group: Group) -> str | None:
        """Where `uses_hints` is false: what is put into the prompt; None where there is nothing yet."""
        raise NotImplementedError

    def solved(self, completions: Sequence[tuple[int, str, str]]) -> None:
        """Sees (prompt_id, prompt, completion) of right completions without help, where `uses_hints` is false."""

    def helped(self, group: Group, level: int, outcomes: Outcomes) -> None:
        """Sees how a group fared that was helped."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`."""
