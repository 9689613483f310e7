"""Time of the search for evaluation prompts among the training prompts.

    python scripts/bench_contamination.py [--prompts 1000] [--training 100000] [--words 100]

Words are drawn at random, often the same ones, as in natural text; one evaluation prompt in ten has a piece of a
training prompt in it, which must be found.
"""

import argparse
import random
import time

from rlvr.evaluation.contamination import NGRAM, contamination


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--training", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=100)
    options = parser.parse_args()
    rng = random.Random(0)
    vocabulary = [f"word{index}" for index in range(50_000)]
    weights = [1.0 / (rank + 1) for rank in range(len(vocabulary))]
    drawn = rng.choices(vocabulary, weights, k=(options.training + options.prompts) * options.words)
    texts = [" ".join(drawn[first : first + options.words]) + "." for first in range(0, len(drawn), options.words)]
    training, prompts = texts[: options.training], texts[options.training :]
    for index in range(0, len(prompts), 10):
        piece = training[rng.randrange(len(training))].split()[: NGRAM + 5]
        prompts[index] = " ".join([*piece, *prompts[index].split()])
    started, processor = time.perf_counter(), time.process_time()
    found = contamination(prompts, training)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    made = len(range(0, len(prompts), 10))
    print(
        f"{len(prompts)} evaluation prompts among {len(training)} training prompts of {options.words} words:"
        f" {seconds:.1f} s, {processor:.1f} s of one processor; {found.num_overlapping} overlap, {made} were made to"
    )


if __name__ == "__main__":
    main()
