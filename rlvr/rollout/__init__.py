"""From prompts to completions, as one record whatever engine sampled them."""

from rlvr.rollout.rollouts import make_rollouts

__all__ = ["make_rollouts"]
