"""Where tuning helps: on prompts that the base model always, sometimes or never solves."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.estimators import Estimate, estimate
from rlvr.evaluation.support import Bools

# The pass rates of a bin lie above its lower and up to its upper bound.
BINS = (
    ("never right", -1.0, 0.0),
    ("up to 25%", 0.0, 0.25),
    ("25% to 50%", 0.25, 0.5),
    ("50% to 75%", 0.5, 0.75),
    ("above 75%", 0.75, 1.0 - 1e-9),
    ("always right", 1.0 - 1e-9, 1.0),
)


@dataclass(frozen=True)
class DifficultyRow:
    """Prompts of like difficulty and their mean pass rates."""

    label: str
    num_prompts: int
    base: Estimate
    tuned: Estimate
    difference: Estimate  # tuned minus base


def difficulty_table(
    base: Bools, tuned: Bools, *, seed: int, clusters: Sequence[Hashable] | None = None
) -> list[DifficultyRow]:
    """One row per bin of the base model's pass rate that has prompts, from the outcomes [N, n] and [N, m].

    Half of the base model's samples, the first, third, fifth and so on, say which bin a prompt is in, and its pass rate
    there is that of the other half. With the same samples for both, prompts that had bad luck would fill the lowest
    bins, and any second model, the base itself included, would seem to help on hard prompts and to harm on easy ones.
    Raises EvaluationError where the base model has but one sample per prompt.
    """
    if base.shape[1] < 2:
        raise EvaluationError("A table by difficulty needs 2 or more samples per prompt of the base model; draw more.")
    difficulty, base_rates, tuned_rates = base[:, 0::2].mean(axis=1), base[:, 1::2].mean(axis=1), tuned.mean(axis=1)
    rows = []
    for label, low, high in BINS:
        chosen = np.flatnonzero((difficulty > low) & (difficulty <= high)).tolist()
        if len(chosen) == 0:
            continue
        units = None if clusters is None else [clusters[index] for index in chosen]
        columns = (base_rates[chosen], tuned_rates[chosen], tuned_rates[chosen] - base_rates[chosen])
        rows.append(DifficultyRow(label, len(chosen), *(estimate(each, seed=seed, clusters=units) for each in columns)))
    return rows
