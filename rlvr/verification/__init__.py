"""Reward functions: loading them by name, and calling them on completions. Imports no torch."""

from rlvr.verification.asynchronous import TransientRewardError
from rlvr.verification.calling import RewardFunction, takes
from rlvr.verification.judging import Judge, limits_of, shared_judge
from rlvr.verification.loading import load_reward
from rlvr.verification.verify import Verdicts, check_unscorable, verify

__all__ = [
    "Judge",
    "RewardFunction",
    "TransientRewardError",
    "Verdicts",
    "check_unscorable",
    "limits_of",
    "load_reward",
    "shared_judge",
    "takes",
    "verify",
]
