"""`python -m rlvr`, which launchers can start: accelerate launch -m rlvr eval RECIPE."""

from rlvr.cli import app

app(prog_name="rlvr")
