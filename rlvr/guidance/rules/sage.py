"""SAGE (arXiv 2602.03143): hints of three levels, as much help as it takes."""

from typing import Any

from rlvr.guidance.rules.base import Outcomes, Rule, pass_rate
from rlvr.sampling.groups import Group

LEVELS = 3
MORE_HELP_BELOW, LESS_HELP_ABOVE = 0.1, 0.35  # pass rates of a helped group, as in the released script


class Sage(Rule):
    """The whole group at level 1; what is still unsolved at level 2, then 3."""

    rounds = LEVELS


class SageLight(Rule):
    """The whole group at one level, which follows the prompt: up after a pass rate below 0.1, down above 0.35.

    In the released script the level decides the prompt's only rollouts of the next epoch. Here it is what the prompt
    gets when it fails without help again, so that the pass rate without help stays known.
    """

    def __init__(self) -> None:
        self.levels: dict[int, int] = {}

    def level(self, group: Group, attempt: int) -> int:
        return self.levels.get(group.prompt_id, 1)  # a failed attempt has moved it up already

    def helped(self, group: Group, level: int, outcomes: Outcomes) -> None:
        rate = pass_rate(outcomes)
        change = 1 if rate < MORE_HELP_BELOW else -1 if rate > LESS_HELP_ABOVE else 0
        self.levels[group.prompt_id] = min(max(level + change, 1), LEVELS)

    def state_dict(self) -> dict[str, Any]:
        return {"levels": {str(prompt_id): level for prompt_id, level in self.levels.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.levels = {int(prompt_id): level for prompt_id, level in state["levels"].items()}
