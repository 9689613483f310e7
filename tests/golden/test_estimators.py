"""pass@k against enumeration, the bootstrap interval against the exact bootstrap distribution and its known laws."""

import math
import random

import pytest

from rlvr.evaluation.estimators import bootstrap_interval, pass_at_k
from tests.reference import estimators as reference


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_equals_enumeration(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            expected = reference.pass_at_k_by_enumeration(num_samples, num_correct, k)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(256, 3, 64), (1024, 1, 512), (2000, 900, 10)])
def test_pass_at_k_of_many_samples_equals_reference(num_samples: int, num_correct: int, k: int) -> None:
    expected = reference.pass_at_k_by_draws(num_samples, num_correct, k)
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, rel=1e-9)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(8, 2, 1) == pytest.approx(2 / 8)
    # Two wrong draws out of four samples, two of them right: 2/4 x 1/3.
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(num_samples, num_correct, k)


def test_bootstrap_refuses_an_empty_sample() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], num_resamples=10, seed=0)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_bootstrap_interval_equals_exact_percentiles(level: float) -> None:
    values = [0.03, 0.91, 0.27, 0.55, 1.48, 0.12]
    exact = reference.bootstrap_means(values)
    low, high = bootstrap_interval(values, num_resamples=20_000, seed=11, level=level)
    tail, slack = (1 - level) / 2, 0.008
    # 20 000 resamples put the percentile's share within 0.008 of the nominal one (at least two standard errors).
    assert reference.quantile(exact, tail - slack) <= low <= reference.quantile(exact, tail + slack)
    assert reference.quantile(exact, 1 - tail - slack) <= high <= reference.quantile(exact, 1 - tail + slack)


def test_bootstrap_level_defaults_to_95_percent() -> None:
    values = [float(index % 7) for index in range(30)]
    default = bootstrap_interval(values, num_resamples=500, seed=2)
    assert default == bootstrap_interval(values, num_resamples=500, seed=2, level=0.95)
    assert default != bootstrap_interval(values, num_resamples=500, seed=2, level=0.9)


def test_bootstrap_is_deterministic_in_its_seed() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(25)]
    first = bootstrap_interval(values, num_resamples=200, seed=3)
    random.seed(99)
    assert bootstrap_interval(values, num_resamples=200, seed=3) == first
    assert bootstrap_interval(values, num_resamples=200, seed=4) != first


def test_bootstrap_leaves_the_global_generator_alone() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    bootstrap_interval([0.0, 1.0, 1.0], num_resamples=50, seed=1)
    assert random.random() == expected


@pytest.mark.parametrize("seed", range(5))
def test_bootstrap_interval_contains_the_mean(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.choice([0.0, 0.125, 0.5, 1.0]) for _ in range(40)]
    low, high = bootstrap_interval(values, num_resamples=1000, seed=seed)
    assert min(values) <= low < math.fsum(values) / 40 < high <= max(values)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
def test_bootstrap_of_equal_values_is_a_point(value: float) -> None:
    low, high = bootstrap_interval([value] * 13, num_resamples=100, seed=0)
    assert low == pytest.approx(value, rel=1e-12)
    assert high == pytest.approx(value, rel=1e-12)


def test_bootstrap_interval_shrinks_with_the_square_root_of_the_size() -> None:
    rng = random.Random(1)
    widths = []
    for size in (50, 800):
        # Evenly spread values, so that both samples have the same standard deviation.
        values = [(index + 0.5) / size for index in range(size)]
        rng.shuffle(values)
        low, high = bootstrap_interval(values, num_resamples=2000, seed=6)
        widths.append(high - low)
        # Normal approximation: 2 x 1.96 x sqrt(1/12 / n).
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / size), rel=0.08)
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(800 / 50), rel=0.1)


def test_bootstrap_interval_covers_the_true_mean_about_95_percent() -> None:
    rng = random.Random(2)
    trials, covered = 300, 0
    for trial in range(trials):
        values = [rng.gauss(0.4, 0.2) for _ in range(60)]
        low, high = bootstrap_interval(values, num_resamples=300, seed=trial)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / trials <= 0.985
