"""Seeds of their own for each use, so that no part shifts the random numbers of another."""

import hashlib


def derived_seed(seed: int, *use: object) -> int:
    """A number of 56 bits that the run's seed and the use, such as a name, a step and a rank, decide."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
