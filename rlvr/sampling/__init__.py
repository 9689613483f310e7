"""Which prompts a step trains on."""

from rlvr.sampling.order import ReplayedOrder

__all__ = ["ReplayedOrder"]
