"""What stages that sample beside the step borrow from the trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from rewards._scorer import TokenScorer
from rlvr.rollout.spread import Sampled, sample_together
from rlvr.types import Rollouts
from rlvr.verification import Verdicts


@dataclass(frozen=True)
class Tools:
    """Sampling and scoring as the run does them."""

    accelerator: Accelerator
    sample_evenly: Callable[[list[Any]], list[Sampled]]  # one completion per prompt; equally many prompts on all ranks
    verify: Callable[[Rollouts], Verdicts]
    count_tokens: Callable[[Any], int]  # of a prompt: text or messages
    encode: Callable[[str], list[int] | None]  # a completion and its end; None if longer than what may be sampled
    scorer: TokenScorer  # the policy

    def sample(self, prompts: Sequence[Any]) -> list[Sampled]:
        """One completion per prompt; all ranks call it, each with any number of prompts."""
        return sample_together(prompts, self.sample_evenly, self.accelerator)

    def first_place(self, rollouts: Rollouts) -> int:
        """The place of this rank's first row in the generation batch of all ranks."""
        return self.accelerator.process_index * len(rollouts.group_ids)
