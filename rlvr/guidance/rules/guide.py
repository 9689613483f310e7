"""Guide-GRPO (arXiv 2506.13923): a failed group is sampled with a hint and trained as if there had been none."""

from rlvr.guidance.rules.base import Outcomes, Rule, pass_rate


class Guide(Rule):
    """The whole group with a hint, kept if some of it is right and some wrong.

    The loss conditions on the hint-free prompt, with the shaped ratio of `rlvr.objectives.shaped_ratio`. The released
    code queues prompts until a batch is full of groups with signal; here the batch has the size that it has.
    """

    def accepts(self, outcomes: Outcomes) -> bool:
        return 0 < pass_rate(outcomes) < 1
