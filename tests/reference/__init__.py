"""Scalar references for the maths of the trainer: Python floats and loops, written from the definitions alone."""
