"""Reward functions: loading them by name, and calling them on completions."""

from rlvr.verification.loading import load_reward
from rlvr.verification.verify import RewardFunction, Verdicts, verify

__all__ = ["RewardFunction", "Verdicts", "load_reward", "verify"]
