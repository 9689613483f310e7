"""Random numbers of their own for what is drawn beside the training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Puts every generator back as it was: rewards may draw from `random` or NumPy as well as from torch."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
