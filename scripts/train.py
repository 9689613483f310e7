"""Entry point for launchers.

accelerate launch --config_file recipes/accelerate/ddp.yaml scripts/train.py RECIPE [key=value ...]
"""

import sys

from rlvr.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
