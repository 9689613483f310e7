"""RLVR post-training: GRPO-family reinforcement learning from verifiable rewards on TRL."""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes, which warns at every start on some CPUs of a kernel that is for 4-bit weights there alone.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
