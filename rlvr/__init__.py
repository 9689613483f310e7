"""RLVR post-training: GRPO-family reinforcement learning from verifiable rewards on TRL."""

__version__ = "0.1.0"
