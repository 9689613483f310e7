"""Predicting later checkpoints from earlier ones: RLVR moves weights nearly linearly in the step (arXiv 2601.04537)."""
