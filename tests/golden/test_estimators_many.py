"""pass@k of many prompts and maj@k against exact enumeration; bootstrap of clusters against its exact distribution."""

import random
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pytest

from rlvr.errors import EvaluationError
from rlvr.evaluation.estimators import (
    CHUNK,
    NUM_RESAMPLES,
    bootstrap_interval,
    estimate,
    pass_at_k,
    pass_at_k_curves,
    resampled_sums,
)
from rlvr.evaluation.majority import majority_at_k
from tests.reference import beyond as exact
from tests.reference import estimators as reference

# ---- pass@k ----------------------------------------------------------------------------------------------------------


def test_curves_equal_exact_fractions_for_all_counts() -> None:
    pairs = [(n, c) for n in range(7, 14) for c in range(n + 1)]
    curves = pass_at_k_curves([n for n, _ in pairs], [c for _, c in pairs], range(1, 8))
    assert curves.shape == (len(pairs), 7)
    for row, (n, c) in enumerate(pairs):
        for k in range(1, 8):
            assert curves[row, k - 1] == pytest.approx(float(exact.pass_at_k_exact(n, c, k)), rel=1e-14, abs=0)
            assert curves[row, k - 1] == pytest.approx(pass_at_k(n, c, k), rel=1e-14, abs=1e-15)


def test_curves_of_many_samples_keep_their_digits() -> None:
    correct = [0, 1, 2, 37, 512, 1022, 1023, 1024]
    ks = [1, 2, 31, 512, 1023, 1024]
    curves = pass_at_k_curves(1024, correct, ks)
    for row, c in enumerate(correct):
        for column, k in enumerate(ks):
            assert curves[row, column] == pytest.approx(float(exact.pass_at_k_exact(1024, c, k)), rel=1e-13, abs=0)
    assert (curves <= 1.0).all()
    assert (curves[correct.index(37)][ks.index(1023) :] == 1.0).all()  # fewer wrong samples than k: exactly 1


def test_curves_by_hand() -> None:
    assert pass_at_k_curves(8, [2], [4])[0, 0] == pytest.approx(0.785714, abs=1e-6)
    assert pass_at_k_curves(10, [3], [5])[0, 0] == pytest.approx(0.916667, abs=1e-6)
    assert pass_at_k_curves(5, [4], [3])[0, 0] == 1.0


def test_curves_keep_the_order_of_prompts_and_of_k() -> None:
    curves = pass_at_k_curves([4, 8, 4, 8], [1, 8, 0, 1], [4, 1])
    assert curves.tolist() == [[1.0, 0.25], [1.0, 1.0], [0.0, 0.0], [pytest.approx(0.5), 0.125]]


@pytest.mark.parametrize(
    ("n", "ks", "message"), [([8, 4], [1, 5], r"pass@5 .* 4 samples"), ([4], [0], "pass@0"), ([4], [], "k")]
)
def test_a_k_that_cannot_be_estimated_is_refused(n: list[int], ks: list[int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        pass_at_k_curves(n, [0] * len(n), ks)


@pytest.mark.parametrize(("n", "c"), [([4], [5]), ([4], [-1]), ([], [])])
def test_impossible_counts_are_refused(n: list[int], c: list[int]) -> None:
    with pytest.raises(ValueError, match="between 0 and all"):
        pass_at_k_curves(n, c, [1])


# ---- maj@k -----------------------------------------------------------------------------------------------------------

VOTES = [
    (["a", "a", "b", "b", "c", "", ""], [1, 1, 0, 0, 0, 0, 0]),
    (["a", "b", "c", "d", "e"], [0, 1, 0, 0, 0]),
    (["a", "a", "a", "b", "b", "c"], [0, 0, 0, 1, 1, 0]),
    (["a", "a", "b", "b", "c", "c"], [1, 0, 1, 1, 0, 0]),  # unlike outcomes of one answer
    (["", "", "", "a"], [0, 0, 0, 1]),
    (["", "", ""], [0, 0, 0]),
    (["a", "a", "a", "a"], [1, 1, 1, 1]),
    (["a", "b", "b", "c", "c", "c", "d", "d", "", "e"], [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("answers", "outcomes"), VOTES)
def test_majority_equals_enumeration_of_subsets(answers: list[str], outcomes: list[int]) -> None:
    for k in range(1, len(answers) + 1):
        expected = float(exact.majority_by_enumeration(answers, outcomes, k))
        assert majority_at_k(answers, outcomes, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_random_votes_equals_enumeration() -> None:
    rng = random.Random(4)
    for _ in range(25):
        answers = [rng.choice(["", "a", "a", "b", "c", "d"]) for _ in range(9)]
        outcomes = [int(answer == "a" or (answer == "b" and rng.random() < 0.5)) for answer in answers]
        k = rng.randint(1, 9)
        expected = float(exact.majority_by_enumeration(answers, outcomes, k))
        assert majority_at_k(answers, outcomes, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_many_samples_between_two_answers_equals_the_hypergeometric_sum() -> None:
    """With two answers the majority is right when more than half of the k are, or half of them and a coin says so."""
    n, right = 200, 101
    answers, outcomes = ["yes"] * right + ["no"] * (n - right), [1.0] * right + [0.0] * (n - right)
    for k in (64, 65, 198):
        expected = sum(
            (1.0 if 2 * t > k else 0.5 if 2 * t == k else 0.0) * _hypergeometric(n, right, k, t)
            for t in range(max(0, k - n + right), min(k, right) + 1)
        )
        assert majority_at_k(answers, outcomes, k) == pytest.approx(expected, rel=1e-9)


def _hypergeometric(n: int, right: int, k: int, t: int) -> float:
    return comb(right, t) * comb(n - right, k - t) / comb(n, k)


def test_majority_of_all_samples_is_the_vote() -> None:
    assert majority_at_k(["a", "a", "b", ""], [1, 1, 0, 0], 4) == 1.0
    assert majority_at_k(["a", "a", "b", "b"], [1, 1, 0, 0], 4) == 0.5  # a tie
    assert majority_at_k(["a", "a", "b", "b", "b"], [1, 1, 0, 0, 0], 5) == 0.0


def test_majority_does_not_depend_on_the_order_of_samples() -> None:
    answers, outcomes = VOTES[-1]
    pairs = list(zip(answers, outcomes, strict=True))
    random.Random(1).shuffle(pairs)
    shuffled = [list(each) for each in zip(*pairs, strict=True)]
    assert majority_at_k(*shuffled, 4) == majority_at_k(answers, outcomes, 4)


@pytest.mark.parametrize("k", [0, 3])
def test_majority_of_more_than_all_samples_is_refused(k: int) -> None:
    with pytest.raises(EvaluationError, match=f"maj@{k}"):
        majority_at_k(["a", "b"], [1, 0], k)


# ---- the bootstrap of clusters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_cluster_interval_equals_exact_percentiles(level: float) -> None:
    values = [0.03, 0.91, 0.27, 0.55, 1.48, 0.12, 0.7, 0.6]
    clusters = ["a", "b", "a", "c", "d", "d", "d", "e"]
    means = exact.cluster_means(values, clusters)
    low, high = bootstrap_interval(values, num_resamples=20_000, seed=11, level=level, clusters=clusters)
    tail, slack = (1 - level) / 2, 0.008  # as in the test of single prompts
    rounding = 1e-12
    assert (
        reference.quantile(means, tail - slack) - rounding <= low <= reference.quantile(means, tail + slack) + rounding
    )
    assert reference.quantile(means, 1 - tail - slack) - rounding <= high
    assert high <= reference.quantile(means, 1 - tail + slack) + rounding


def test_weighted_interval_is_that_of_rows_repeated_within_clusters() -> None:
    values, weights = [0.1, 0.9, 0.4, 0.7, 0.2], [3, 1, 2, 1, 4]
    rows = [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]
    owners = [index for index, weight in enumerate(weights) for _ in range(weight)]
    weighted = estimate(values, seed=3, weights=[float(each) for each in weights])
    repeated = estimate(rows, seed=3, clusters=owners)
    assert _values(weighted) == pytest.approx(_values(repeated), rel=1e-12)


def _values(each: Any) -> tuple[float, float, float]:
    return each.value, each.low, each.high


def test_repeated_prompts_do_not_narrow_the_interval() -> None:
    rng = random.Random(8)
    values = [rng.random() for _ in range(40)]
    once = estimate(values, seed=5)
    copies = estimate(values * 6, seed=5, clusters=[*range(40)] * 6)
    assert _values(copies) == pytest.approx(_values(once), rel=1e-12)
    naive = estimate(values * 6, seed=5)
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_clusters_of_one_prompt_change_nothing() -> None:
    values = [0.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.75]
    assert estimate(values, seed=1, clusters=list("gfedcba")) == estimate(values, seed=1)


def test_intervals_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((37, 2))
    whole = resampled_sums(columns, num_resamples=200, seed=4)
    monkeypatch.setattr("rlvr.evaluation.estimators.CHUNK", 37 * 9)
    np.testing.assert_allclose(resampled_sums(columns, num_resamples=200, seed=4), whole, rtol=1e-12)
    assert 37 * NUM_RESAMPLES < CHUNK  # else nothing was compared


def test_resamples_draw_as_many_units_as_there_are() -> None:
    ones = np.ones((9, 1))
    assert (resampled_sums(ones, num_resamples=50, seed=0) == 9.0).all()
    sizes = {3.0 * a + 2.0 * b + 4.0 * c for a, b, c in product(range(4), repeat=3) if a + b + c == 3}
    drawn = resampled_sums(ones, num_resamples=500, seed=0, clusters=list("aaabbcccc"))
    assert set(drawn[:, 0]) == sizes


def test_clusters_must_be_as_many_as_rows() -> None:
    with pytest.raises(ValueError, match="clusters"):
        estimate([1.0, 2.0], seed=0, clusters=["a"])
