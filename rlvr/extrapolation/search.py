"""Which alpha to try next, which is best, and where extrapolation goes too far: decisions on numbers alone.

Scores are one number per validation prompt, by set. All alphas are scored on the same prompts with the same seeds, so
that differences are taken prompt by prompt: much of what makes prompts unlike cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from rlvr.config.schema import EvaluationConfig
from rlvr.errors import ExtrapolationError
from rlvr.evaluation.estimators import NUM_RESAMPLES, Estimate, pass_at_k
from rlvr.evaluation.records import PromptRecord

Scores = Mapping[str, Mapping[int, float]]  # by set and prompt id

TUNED = 1.0  # the alpha of the tuned checkpoint itself, with which all are compared
START = (1.0, 1.5, 2.0, 3.0)  # what an adaptive search tries first, in this order
GOLDEN = (3.0 - sqrt(5.0)) / 2.0  # of a gap, where the next alpha lies
FINEST = 0.2  # a gap between alphas that is no wider than this is not divided
LEVEL = 0.95


# ---- scores ---------------------------------------------------------------------------------------------------------


def check_metric(metric: str, config: EvaluationConfig) -> None:
    """Raises ExtrapolationError unless the metric is reward, greedy (where the recipe samples so) or pass@k."""
    k = metric.removeprefix("pass@")
    if k != metric and k.isdecimal() and 1 <= int(k) <= config.num_samples:
        return
    if metric == "reward" or (metric == "greedy" and config.greedy):
        return
    allowed = (
        f"pass@1 to pass@{config.num_samples} (evaluation.num_samples), {'greedy, ' if config.greedy else ''}reward"
    )
    raise ExtrapolationError(f"--metric {metric} cannot be had from this recipe; give one of {allowed}.")


def prompt_score(record: PromptRecord, metric: str) -> float | None:
    """The metric of one prompt: pass@k of its samples, whether the greedy answer is right, or the mean reward.

    None where a completion that it needs got no verdict.
    """
    if metric == "greedy":
        return None if record.greedy_outcome is None else float(record.greedy_outcome == 1.0)
    if metric == "reward":
        rewards = [each for each in record.rewards if each is not None]
        return sum(rewards) / len(rewards) if len(rewards) == len(record.rewards) else None
    if None in record.outcomes:
        return None
    num_right = sum(outcome == 1.0 for outcome in record.outcomes)
    return pass_at_k(len(record.outcomes), num_right, int(metric.removeprefix("pass@")))


def scores_of(records: Mapping[str, Sequence[PromptRecord]], metric: str) -> dict[str, dict[int, float]]:
    """The scores of all prompts that have one. Raises ExtrapolationError where a set has none."""
    found = {}
    for name, each in records.items():
        pairs = ((record.prompt_id, prompt_score(record, metric)) for record in each)
        found[name] = {prompt_id: score for prompt_id, score in pairs if score is not None}
        if not found[name]:
            raise ExtrapolationError(
                f"No prompt of {name} got a verdict on all its completions; check the verifier of the recipe."
            )
    return found


def mean_score(scores: Scores, seed: int) -> Estimate:
    """The mean over sets of their means over prompts, with its 95% bootstrap interval."""
    return _estimate([np.array(list(each.values())) for each in scores.values()], seed)


def paired_difference(scores: Scores, reference: Scores, seed: int) -> Estimate:
    """The mean over sets of the mean difference over prompts that both scored, with its 95% bootstrap interval.

    Prompts are drawn with replacement within their set, and each brings both of its scores. Raises ExtrapolationError
    where a set has no prompt that both scored.
    """
    differences = []
    for name, theirs in reference.items():
        both = [prompt_id for prompt_id in theirs if prompt_id in scores[name]]
        if not both:
            raise ExtrapolationError(
                f"No prompt of {name} got a verdict at both alphas; check the verifier of the recipe."
            )
        differences.append(np.array([scores[name][prompt_id] - theirs[prompt_id] for prompt_id in both]))
    return _estimate(differences, seed)


def _estimate(values: Sequence[NDArray[np.float64]], seed: int) -> Estimate:
    """Percentile bootstrap of the mean over sets of means; for one set as `bootstrap_interval`."""
    generator = np.random.default_rng(seed)
    resampled = np.zeros(NUM_RESAMPLES)
    for each in values:
        picks = generator.integers(0, len(each), size=(NUM_RESAMPLES, len(each)))
        resampled += each[picks].mean(axis=1) / len(values)
    tail = (1.0 - LEVEL) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Estimate(float(np.mean([each.mean() for each in values])), float(low), float(high))


# ---- decisions ------------------------------------------------------------------------------------------------------


def is_worse(difference: Estimate) -> bool:
    """Whether the interval of a difference lies below 0."""
    return difference.high < 0.0


def is_better(difference: Estimate) -> bool:
    """Whether the interval of a difference lies above 0."""
    return difference.low > 0.0


def best_alpha(means: Mapping[float, float]) -> float:
    """The alpha of the largest mean; of equal ones that which goes least far from the tuned checkpoint."""
    return max(means, key=lambda alpha: (means[alpha], -abs(alpha - TUNED)))


@dataclass(frozen=True)
class Findings:
    """What the evaluated alphas say; `against_tuned` holds paired differences from alpha = 1."""

    means: dict[float, Estimate]  # by alpha, ascending
    against_tuned: dict[float, Estimate]
    best: float
    worse_from: float | None  # the least alpha above 1 from which on all that were tried are worse than alpha = 1

    @property
    def best_is_largest(self) -> bool:
        """Whether the curve still rises where it ends."""
        return self.best == max(self.means) > TUNED

    @property
    def best_is_least(self) -> bool:
        """Whether the curve already falls where it begins, short of the base itself."""
        return self.best == min(self.means) > 0.0


def findings(scored: Mapping[float, Scores], seed: int) -> Findings:
    """What `scored`, with alpha = 1 in it, says."""
    means = {alpha: mean_score(scored[alpha], seed) for alpha in sorted(scored)}
    against = {alpha: paired_difference(scored[alpha], scored[TUNED], seed) for alpha in means}
    worse_from = None
    for alpha in sorted(against, reverse=True):
        if alpha <= TUNED or not is_worse(against[alpha]):
            break
        worse_from = alpha
    best = best_alpha({alpha: mean.value for alpha, mean in means.items()})
    return Findings(means, against, best, worse_from)


def next_of_grid(grid: Sequence[float], scored: Mapping[float, Scores]) -> float | None:
    """The next alpha of a grid to evaluate: 1 first, then upwards; None when all are."""
    return next((alpha for alpha in (TUNED, *sorted(grid)) if alpha not in scored), None)


def next_adaptive(scored: Mapping[float, Scores], max_evaluations: int, seed: int) -> float | None:
    """The next alpha of an adaptive search, given all that are evaluated; None when the search is over.

    First `START`, upwards. Then the wider of the two gaps beside the best alpha is divided at the golden section, near
    the best; where the best is the largest yet, the next lies beyond it, by the gap below it times 1.618. Nothing is
    tried below 1, nor at or beyond the least alpha that is significantly worse than 1. The search is over after
    `max_evaluations`, or when both gaps are fine.
    """
    if len(scored) >= max_evaluations:
        return None
    limit = _first_worse(scored, seed)
    for alpha in START:
        if alpha not in scored and (limit is None or alpha < limit):
            return alpha
    inside = [alpha for alpha in sorted(scored) if alpha >= TUNED and (limit is None or alpha < limit)]
    best = best_alpha({alpha: mean_score(scored[alpha], seed).value for alpha in inside})
    tried = inside if limit is None else [*inside, limit]
    place = tried.index(best)
    below = best - tried[place - 1] if place > 0 else 0.0
    if place + 1 == len(tried):
        return round(best + below * (1.0 - GOLDEN) / GOLDEN, 2)
    above = tried[place + 1] - best
    if max(below, above) <= FINEST:
        return None
    return round(best + GOLDEN * above if above >= below else best - GOLDEN * below, 2)


def _first_worse(scored: Mapping[float, Scores], seed: int) -> float | None:
    """The least alpha above 1 that is significantly worse than 1."""
    above = (alpha for alpha in sorted(scored) if alpha > TUNED)
    return next((alpha for alpha in above if is_worse(paired_difference(scored[alpha], scored[TUNED], seed))), None)


# ---- in words -------------------------------------------------------------------------------------------------------


def verdict(found: Findings, metric: str) -> list[str]:
    """What to make of the findings, a sentence each."""
    best, tuned = found.means[found.best], found.means[TUNED]
    if found.best == TUNED:
        said = [f"No alpha that was tried is above alpha = 1, whose {metric} is {tuned.value:.3f}."]
    else:
        difference = found.against_tuned[found.best]
        if is_better(difference):
            judged = "it is better"
        else:
            judged = "these validation prompts do not tell the two apart"
        said = [
            f"Best is alpha = {found.best:g} with a {metric} of {best.value:.3f}, against {tuned.value:.3f} at alpha ="
            f" 1 ({shown_difference(difference)}): {judged}."
        ]
    if found.worse_from is not None:
        difference = found.against_tuned[found.worse_from]
        said.append(
            f"Over-extrapolated from alpha = {found.worse_from:g} on: the {metric} there is below that of alpha = 1"
            f" ({shown_difference(difference)})."
        )
    for is_at_end, end, factors in (
        (found.best_is_largest, "largest that was tried, so the best may lie beyond", (1.25, 1.5, 2.0)),
        (found.best_is_least, "least that was tried, so the best may lie below", (0.5, 0.75, 0.9)),
    ):
        if is_at_end:
            further = ",".join(f"{found.best * factor:g}" for factor in factors)
            said.append(f"The best alpha is the {end}; try --alpha-grid {further} into the same --out.")
    return said


def shown_difference(difference: Estimate) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
