"""Readers of checkpoints, one file per format; `rlvr.extrapolation.checkpoints` chooses among them."""
