"""Reward functions: loading them by name, and calling them on completions."""

from rlvr.verification.loading import load_reward
from rlvr.verification.verify import RewardFunction, Verdicts, check_unscorable, verify

__all__ = ["RewardFunction", "Verdicts", "check_unscorable", "load_reward", "verify"]
