"""NuRL, Nudging the Boundaries (arXiv 2509.25666): all of a failed group but one completion get a hint."""

import random

from rlvr.guidance.rules.base import Roles, Rule
from rlvr.sampling.groups import Group


class Nurl(Rule):
    """G - 1 completions with a hint and one without, which keeps the group from being all right.

    The paper's text could not be read; whether the one without is a failure that is there already (`reuse`, one
    completion cheaper) or a new one (`resample`) is open, and so is a switch. The loss conditions on the hint.
    """

    def __init__(self, plain_rollout: str) -> None:
        self.resample = plain_rollout == "resample"

    def roles(self, group: Group, rng: random.Random) -> Roles:
        failed = [place for place, outcome in zip(group.places, group.outcomes, strict=True) if outcome == 0]
        place = rng.choice(failed or list(group.places))
        return Roles(resampled=(place,)) if self.resample else Roles(kept=(place,))
