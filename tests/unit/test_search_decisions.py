"""Which alpha a search tries, which it calls best and where it says too far, on curves made by hand."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from rlvr.config.schema import EvaluationConfig
from rlvr.errors import ExtrapolationError
from rlvr.evaluation.estimators import NUM_RESAMPLES, bootstrap_interval
from rlvr.evaluation.records import PromptRecord
from rlvr.extrapolation.search import (
    START,
    Scores,
    best_alpha,
    check_metric,
    findings,
    is_better,
    is_worse,
    mean_score,
    next_adaptive,
    next_of_grid,
    paired_difference,
    prompt_score,
    scores_of,
    verdict,
)

SEED = 3
Curve = Callable[[float], float]


def record(
    prompt_id: int, outcomes: Sequence[float | None], greedy: float | None = 1.0, rewards: Sequence[float | None] = ()
) -> PromptRecord:
    return PromptRecord(prompt_id, tuple(outcomes), greedy, tuple(rewards or outcomes), (1,) * len(outcomes), 0)


def scores_at(alpha: float, curve: Curve, noise: float = 0.05, prompts: int = 60) -> Scores:
    """Prompts of very unlike difficulty, the same at every alpha, and a little noise that is not."""
    hard, drawn = random.Random(1), random.Random(f"{alpha}")
    return {"val": {i: curve(alpha) + hard.gauss(0.0, 0.3) + drawn.gauss(0.0, noise) for i in range(prompts)}}


def searched(curve: Curve, max_evaluations: int = 12, noise: float = 0.05) -> dict[float, Scores]:
    """All that an adaptive search evaluates, in its order."""
    scored: dict[float, Scores] = {}
    while (alpha := next_adaptive(scored, max_evaluations, SEED)) is not None:
        assert alpha not in scored
        scored[alpha] = scores_at(alpha, curve, noise)
    return scored


def on_grid(curve: Curve, grid: Sequence[float] = (1.0, 1.5, 2.0, 3.0), noise: float = 0.05) -> dict[float, Scores]:
    return {alpha: scores_at(alpha, curve, noise) for alpha in grid}


def peak(alpha: float) -> float:
    return 0.6 - 0.3 * (alpha - 1.7) ** 2


def rising(alpha: float) -> float:
    return 0.3 + 0.1 * alpha


def falling(alpha: float) -> float:
    return 0.6 - 0.1 * (alpha - 1.0)


def collapse(alpha: float) -> float:
    return 0.6 if alpha < 1.8 else 0.2


def flat(alpha: float) -> float:
    return 0.5


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_scores_of_a_prompt_by_hand() -> None:
    one_of_four = record(0, [0.0, 1.0, 0.0, 0.0], greedy=0.0, rewards=[0.1, 1.2, -0.3, 0.0])
    assert prompt_score(one_of_four, "pass@1") == pytest.approx(0.25)
    assert prompt_score(one_of_four, "pass@2") == pytest.approx(0.5)
    assert prompt_score(one_of_four, "pass@4") == pytest.approx(1.0)
    assert prompt_score(one_of_four, "greedy") == 0.0
    assert prompt_score(one_of_four, "reward") == pytest.approx(0.25)
    undecided = record(1, [1.0, None], greedy=None, rewards=[1.0, None])
    assert [prompt_score(undecided, metric) for metric in ("pass@1", "greedy", "reward")] == [None, None, None]
    assert prompt_score(record(2, [1.0, None]), "greedy") == 1.0


def test_prompts_without_a_score_are_left_out_and_a_set_of_them_is_an_error() -> None:
    found = scores_of({"a": [record(4, [1.0, 0.0]), record(5, [None, 1.0])]}, "pass@1")
    assert found == {"a": {4: 0.5}}
    with pytest.raises(ExtrapolationError, match="No prompt of b got a verdict"):
        scores_of({"a": [record(0, [1.0])], "b": [record(0, [None])]}, "pass@1")


@pytest.mark.parametrize("metric", ["pass@1", "pass@4", "greedy", "reward"])
def test_metrics(metric: str) -> None:
    check_metric(metric, EvaluationConfig(num_samples=4, k=[1]))


@pytest.mark.parametrize("metric", ["pass@5", "pass@0", "pass@", "pass", "1", "mean_length", "greedy", "pass@²"])
def test_metrics_that_the_recipe_does_not_give(metric: str) -> None:
    with pytest.raises(ExtrapolationError, match="give one of pass@1 to pass@4"):
        check_metric(metric, EvaluationConfig(num_samples=4, k=[1], greedy=False))


def test_mean_of_one_set_is_that_of_evaluation() -> None:
    values = [random.Random(0).random() ** 2 for _ in range(30)]
    mean = mean_score({"a": dict(enumerate(values))}, SEED)
    assert mean.value == pytest.approx(sum(values) / 30)
    expected = bootstrap_interval(values, num_resamples=NUM_RESAMPLES, seed=SEED)
    assert (mean.low, mean.high) == pytest.approx(expected, abs=1e-12)


def test_sets_count_alike_whatever_their_sizes() -> None:
    assert mean_score({"a": {0: 1.0}, "b": {0: 0.0, 1: 0.0, 2: 0.5, 3: 0.5}}, SEED).value == pytest.approx(0.625)
    reference = {"a": {0: 0.5}, "b": {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.5}}
    difference = paired_difference({"a": {0: 1.0}, "b": {0: 0.0, 1: 0.0, 2: 0.5, 3: 0.5}}, reference, SEED)
    assert difference.value == pytest.approx((0.5 + 0.125) / 2)


# ---- the paired bootstrap -------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def test_paired_bootstrap_equals_a_scalar_one() -> None:
    rng = random.Random(5)
    sizes = {"a": 7, "b": 12}
    ours, theirs = ({name: {i: rng.random() for i in range(size)} for name, size in sizes.items()} for _ in range(2))
    generator = np.random.default_rng(SEED)
    drawn = {name: generator.integers(0, size, size=(NUM_RESAMPLES, size)).tolist() for name, size in sizes.items()}
    resampled = []
    for number in range(NUM_RESAMPLES):
        means = []
        for name, picks in drawn.items():
            differences = [ours[name][i] - theirs[name][i] for i in picks[number]]
            means.append(math.fsum(differences) / len(differences))
        resampled.append(math.fsum(means) / len(means))
    difference = paired_difference(ours, theirs, SEED)
    assert difference.low == pytest.approx(quantile(resampled, 0.025), abs=1e-12)
    assert difference.high == pytest.approx(quantile(resampled, 0.975), abs=1e-12)


def test_paired_bootstrap_approaches_the_exact_one() -> None:
    """All 6^6 ways to draw 6 prompts, each as likely as the other."""
    differences = [0.5, -0.125, 0.25, 0.0, 0.375, -0.25]
    exact = [sum(drawn) / 6 for drawn in itertools.product(differences, repeat=6)]
    theirs = {i: 0.5 for i in range(6)}
    ours = {i: 0.5 + difference for i, difference in enumerate(differences)}
    found = paired_difference({"a": ours}, {"a": theirs}, SEED)
    assert found.value == pytest.approx(0.125)
    assert found.low == pytest.approx(quantile(exact, 0.025), abs=0.025)
    assert found.high == pytest.approx(quantile(exact, 0.975), abs=0.025)


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    ours, theirs = scores_at(2.0, lambda _: 0.53, 0.02), scores_at(1.0, lambda _: 0.5, 0.02)
    assert mean_score(ours, SEED).low < mean_score(theirs, SEED).value
    assert is_better(paired_difference(ours, theirs, SEED))
    assert is_worse(paired_difference(theirs, ours, SEED))
    assert paired_difference(theirs, theirs, SEED).high == 0.0
    assert not is_worse(paired_difference(theirs, theirs, SEED))


def test_prompts_are_paired_by_their_id() -> None:
    theirs = {i: float(i) for i in range(9)}
    shuffled = {i: i + 1.0 for i in (3, 8, 0, 5, 4, 1, 7, 2, 6)}
    difference = paired_difference({"a": shuffled}, {"a": theirs}, SEED)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    del shuffled[4], theirs[0]
    shuffled[0] = 99.0
    difference = paired_difference({"a": shuffled}, {"a": theirs}, SEED)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ExtrapolationError, match="No prompt of a got a verdict at both alphas"):
        paired_difference({"a": {0: 1.0}}, {"a": {1: 1.0}}, SEED)


# ---- what the curve says --------------------------------------------------------------------------------------------


def test_of_equal_alphas_the_nearest_to_the_tuned_model_is_best() -> None:
    assert best_alpha({0.0: 0.5, 1.5: 0.5, 2.0: 0.5, 3.0: 0.4}) == 1.5
    assert best_alpha({1.0: 0.5, 1.5: 0.5, 0.5: 0.5}) == 1.0
    assert best_alpha({1.0: 0.5, 2.0: 0.5000001}) == 2.0


@pytest.mark.parametrize(
    ("curve", "best", "worse_from", "largest"),
    [
        (peak, 1.5, 3.0, False),
        (rising, 3.0, None, True),
        (falling, 1.0, 1.5, False),
        (lambda alpha: 0.6 if alpha in (1.0, 2.0) else 0.3, None, 3.0, False),  # worse, not worse, worse
        (lambda alpha: 0.3 if alpha == 1.5 else 0.6 + 0.1 * alpha, 3.0, None, True),
    ],
)
def test_findings(curve: Curve, best: float | None, worse_from: float | None, largest: bool) -> None:
    found = findings(on_grid(curve, noise=0.02), SEED)
    assert best is None or found.best == best
    assert found.worse_from == worse_from
    assert found.best_is_largest is largest
    assert list(found.means) == [1.0, 1.5, 2.0, 3.0]
    assert found.against_tuned[1.0].low == found.against_tuned[1.0].high == 0.0


def test_tuned_model_alone_at_the_top_is_not_the_end_of_a_rising_curve() -> None:
    found = findings(on_grid(rising, (0.0, 0.5, 1.0), noise=0.01), SEED)
    assert found.best == 1.0
    assert not found.best_is_largest
    assert found.worse_from is None


def test_flat_curves_are_seldom_called_anything() -> None:
    """An interval of 95% errs in one direction for one alpha in forty."""
    false_alarms = 0
    for trial in range(60):
        rng = random.Random(trial)
        scored = {alpha: {"val": {i: 0.5 + rng.gauss(0, 0.2) for i in range(50)}} for alpha in (1.0, 2.0)}
        found = findings(scored, SEED)
        false_alarms += found.worse_from is not None or is_better(found.against_tuned[found.best])
    assert false_alarms <= 8


# ---- which alpha next -----------------------------------------------------------------------------------------------


def test_grid_goes_upwards_from_the_tuned_model() -> None:
    scored: dict[float, Scores] = {}
    while (alpha := next_of_grid((3.0, 0.5, 2.0), scored)) is not None:
        scored[alpha] = {}
    assert list(scored) == [1.0, 0.5, 2.0, 3.0]
    assert next_of_grid((2.0, 4.0), {1.0: {}, 2.0: {}}) == 4.0


def test_adaptive_search_closes_in_on_a_peak() -> None:
    scored = searched(peak, noise=0.01)
    assert tuple(scored)[:4] == START
    assert len(scored) < 12
    best = findings(scored, SEED).best
    assert abs(best - 1.7) <= 0.1
    alphas = sorted(scored)
    place = alphas.index(best)
    assert max(best - alphas[place - 1], alphas[place + 1] - best) <= 0.2


def test_adaptive_search_follows_a_curve_that_rises() -> None:
    assert list(searched(rising, max_evaluations=6)) == [*START, 4.62, 7.24]


@pytest.mark.parametrize("noise", [0.01, 0.1])
@pytest.mark.parametrize("curve", [collapse, falling, peak, lambda alpha: 0.5 + 0.05 * alpha if alpha < 5.0 else 0.0])
def test_adaptive_search_never_goes_beyond_what_is_worse(curve: Curve, noise: float) -> None:
    scored: dict[float, Scores] = {}
    limit = math.inf
    for alpha, scores in searched(curve, noise=noise).items():
        assert 1.0 <= alpha < limit
        scored[alpha] = scores
        if is_worse(paired_difference(scores, scored[1.0], SEED)):
            limit = alpha
    assert limit < math.inf


def test_adaptive_search_leaves_out_the_rest_of_its_start_after_a_collapse() -> None:
    tried = searched(collapse, noise=0.01)
    assert tuple(tried)[:3] == (1.0, 1.5, 2.0)
    assert max(tried) == 2.0
    assert list(searched(falling, noise=0.01)) == [1.0, 1.5, 1.19]


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("curve", [flat, rising, peak])
def test_adaptive_search_keeps_to_its_budget(curve: Curve, budget: int) -> None:
    assert len(searched(curve, max_evaluations=budget)) <= budget
    assert len(searched(curve, max_evaluations=min(budget, 4))) == min(budget, 4)


@pytest.mark.parametrize("curve", [flat, peak, rising, collapse])
def test_adaptive_search_goes_on_as_if_it_had_not_stopped(curve: Curve) -> None:
    whole = list(searched(curve, max_evaluations=9).items())
    for done in range(len(whole)):
        shuffled = dict(random.Random(done).sample(whole[:done], done))
        assert next_adaptive(shuffled, 9, SEED) == whole[done][0]


# ---- in words -------------------------------------------------------------------------------------------------------


def said(scored: Mapping[float, Scores]) -> str:
    return " ".join(verdict(findings(scored, SEED), "pass@1"))


def test_verdicts() -> None:
    words = said(on_grid(peak, noise=0.02))
    assert "Best is alpha = 1.5 with a pass@1 of 0.6" in words
    assert "it is better" in words
    assert "Over-extrapolated from alpha = 3 on" in words
    assert "largest" not in words
    words = said(on_grid(rising))
    assert "The best alpha is the largest that was tried" in words
    assert "--alpha-grid 3.75,4.5,6" in words
    assert "Over-extrapolated" not in words
    words = said(on_grid(falling, noise=0.02))
    assert words.startswith("No alpha that was tried is above alpha = 1")
    assert "Over-extrapolated from alpha = 1.5 on" in words
    assert "The best alpha is the least that was tried" in words
    assert "--alpha-grid 0.5,0.75,0.9" in words
    assert "least" not in said(on_grid(falling, (0.0, 1.0, 2.0)))  # the base itself


def test_verdict_of_a_flat_curve_is_that_nothing_can_be_told() -> None:
    scored = {alpha: scores_at(alpha, flat, noise=0.3, prompts=20) for alpha in (1.0, 1.5, 2.0, 3.0)}
    found = findings(scored, SEED)
    assert not is_better(found.against_tuned[found.best])
    if found.best != 1.0:
        assert "do not tell the two apart" in said(scored)
