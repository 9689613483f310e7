"""Checkpoints that are whole or absent, and what a run needs beside weights to go on as if it had never stopped."""
