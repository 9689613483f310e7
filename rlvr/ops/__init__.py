"""Numerical kernels that keep memory flat in the vocabulary."""
