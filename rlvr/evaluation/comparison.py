"""Two models on the same prompts: their difference, its interval and its p-value."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rlvr.errors import EvaluationError
from rlvr.evaluation.estimators import CHUNK, Estimate, Floats, cluster_sums, estimate

NUM_FLIPS = 9999
MAX_EXACT = 13  # that many differences have no more than NUM_FLIPS ways to give them signs
SHOWN = 5  # prompts that a message names

Key = TypeVar("Key", bound=Hashable)  # what names a prompt


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the prompts that both have a value for."""

    mean: float
    reference_mean: float
    difference: Estimate  # of the model minus the reference
    p_value: float
    num_prompts: int
    num_unscored: int  # prompts left out, as one of the two has no verdict on them


def compare(
    values: Mapping[Key, float | None],
    reference: Mapping[Key, float | None],
    *,
    seed: int,
    clusters: Mapping[Key, Hashable] | None = None,
) -> Comparison:
    """Compares two models by one value per prompt, such as pass@k; None stands for no verdict.

    The interval is that of the paired percentile bootstrap: prompts are drawn with replacement, each with both of its
    values. The p-value is two-sided, of the sign-flip permutation test (see `sign_flip_p_value`), whose null hypothesis
    is that a prompt's two values might as well be swapped. `clusters` says for each prompt what it shares with others,
    such as its text; clusters are then drawn and swapped as wholes.

    Raises EvaluationError that names prompts which only one model was evaluated on, and where no prompt is left.
    """
    check_same_prompts(values, reference)
    pairs = {key: (values[key], reference[key]) for key in values}
    scored = {key: (ours, theirs) for key, (ours, theirs) in pairs.items() if ours is not None and theirs is not None}
    if not scored:
        raise EvaluationError("No prompt has a verdict from both models; check the verifier, or compare other samples.")
    ours, theirs = np.array(list(scored.values()), dtype=np.float64).T
    units = None if clusters is None else [clusters[key] for key in scored]
    differences = ours - theirs
    summed = differences if units is None else cluster_sums(differences[:, None], units)[:, 0]
    return Comparison(
        mean=float(ours.mean()),
        reference_mean=float(theirs.mean()),
        difference=estimate(differences, seed=seed, clusters=units),
        p_value=sign_flip_p_value(summed, seed=seed),
        num_prompts=len(scored),
        num_unscored=len(pairs) - len(scored),
    )


def check_same_prompts(values: Mapping[Key, object], reference: Mapping[Key, object]) -> None:
    """Raises EvaluationError that names prompts which only one of the two models was evaluated on."""
    _check_subset(reference, values, "the reference but not for the model")
    _check_subset(values, reference, "the model but not for the reference")


def _check_subset(some: Mapping[Key, object], others: Mapping[Key, object], said: str) -> None:
    missing = sorted(map(str, some.keys() - others.keys()), key=lambda name: (len(name), name))
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        named = f"{'prompts' if missing[1:] else 'prompt'} {', '.join(missing[:SHOWN])}{more}"
        raise EvaluationError(
            f"Evaluated for {said}: {named}; compare samples of the same data set, or finish the evaluation that was"
            " interrupted."
        )


def sign_flip_p_value(differences: Floats, *, seed: int) -> float:
    """Two-sided p-value of the total of C independent differences, if each might as well have the other sign.

    The share of all 2^C ways to sign the differences whose total is as far from 0 as the observed one, exactly where
    `MAX_EXACT` or fewer of them are not 0. Otherwise of NUM_FLIPS random ways, b of which are as far: (b + 1) /
    (NUM_FLIPS + 1), which never understates the p-value on average (Phipson and Smyth 2010). Totals that differ by
    rounding alone count as equal.
    """
    moving = differences[differences != 0.0]
    least = abs(moving.sum()) - 1e-12 * np.abs(moving).sum()
    if len(moving) <= MAX_EXACT:
        ways = np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1
        totals = (2.0 * ways - 1.0) @ moving
        return float((np.abs(totals) >= least).mean())
    random = np.random.default_rng(seed)
    step, as_far = max(1, CHUNK // len(moving)), 0
    for first in range(0, NUM_FLIPS, step):
        flips = random.integers(0, 2, size=(min(step, NUM_FLIPS - first), len(moving)), dtype=np.int8)
        as_far += int((np.abs((2.0 * flips - 1.0) @ moving) >= least).sum())
    return (as_far + 1) / (NUM_FLIPS + 1)
