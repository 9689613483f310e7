"""Time and error of `pass_at_k_curves` against exact integers, with as many prompts and samples as large studies have.

    python scripts/bench_pass_at_k.py [--prompts 10000] [--samples 1024] [--rounds 5]

Each round draws new counts of right samples, of all sizes. `all k` is every k from 1 to the number of samples.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from rlvr.evaluation.curves import curve_ks
from rlvr.evaluation.estimators import Floats, pass_at_k_curves


def largest_error(curves: Floats, correct: NDArray[np.int64], samples: int, ks: Sequence[int]) -> float:
    """The largest absolute error over all distinct counts, against fractions of integers."""
    worst, seen = Fraction(0), dict(zip(correct.tolist(), range(len(correct)), strict=True))
    for column, k in enumerate(ks):
        subsets = math.comb(samples, k)
        for right, row in seen.items():
            exact = 1 - Fraction(math.comb(samples - right, k), subsets)
            worst = max(worst, abs(Fraction(curves[row, column]) - exact))
    return float(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    for name, ks in (("powers of two", curve_ks(options.samples)), ("all k", range(1, options.samples + 1))):
        seconds, error = [], 0.0
        for _ in range(options.rounds):
            # Pass rates of all sizes, most of them small, as on hard problems.
            correct = random.binomial(options.samples, random.beta(0.3, 1.0, size=options.prompts))
            started = time.perf_counter()
            curves = pass_at_k_curves(options.samples, correct, ks)
            seconds.append(time.perf_counter() - started)
            if len(ks) <= 20:
                error = max(error, largest_error(curves, correct, options.samples, ks))
        said = f", largest error {error:.1e} against exact integers" if len(ks) <= 20 else ""
        print(
            f"{options.prompts} prompts x {options.samples} samples, {name} ({len(ks)}): median"
            f" {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s{said}"
        )


if __name__ == "__main__":
    main()
