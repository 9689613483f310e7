"""XRPO's seeding (arXiv 2510.06672): a failed prompt is shown similar problems that the policy has solved."""

from collections.abc import Sequence
from typing import Any

from rlvr.guidance.prompting import text_of_prompt
from rlvr.guidance.retrieval import Solved
from rlvr.guidance.rules.base import Rule
from rlvr.sampling.groups import Group


class Exemplar(Rule):
    """The whole group with the most similar solved problems in front; without any yet, no help.

    Similar is the cosine of word counts. The store holds right completions without help, the newest of each prompt.
    Whether the paper trains on the bare prompt was not established: by default the loss conditions on the exemplars.
    """

    uses_hints = False
    default_template = "{hint}\n\n{prompt}"

    def __init__(self, count: int, template: str) -> None:
        self.count, self.template = count, template
        self.store = Solved()

    def help_for(self, group: Group) -> str | None:
        found = self.store.nearest(group.prompt_id, text_of_prompt(group.prompt), self.count)
        shown = [self.template.format(prompt=prompt, completion=completion) for prompt, completion in found]
        return "\n\n".join(shown) or None

    def solved(self, completions: Sequence[tuple[int, str, str]]) -> None:
        for prompt_id, prompt, completion in completions:
            self.store.add(prompt_id, prompt, completion)

    def state_dict(self) -> dict[str, Any]:
        return self.store.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.store.load_state_dict(state)
