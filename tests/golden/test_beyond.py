"""Support, entropy, comparison and crossing of two models against exact references and their laws."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from rlvr.errors import EvaluationError
from rlvr.evaluation.comparison import MAX_EXACT, NUM_FLIPS, compare, sign_flip_p_value
from rlvr.evaluation.curves import crossing_points, curve_ks, pass_at_k_curves_of
from rlvr.evaluation.difficulty import difficulty_table
from rlvr.evaluation.entropy import answer_entropy, mean_answer_entropy, mean_token_entropy
from rlvr.evaluation.estimators import estimate, pass_at_k
from rlvr.evaluation.support import Bools, detectable_pass_rate, support_metrics, support_of, support_ratios
from tests.reference import beyond as reference


def outcomes(num_right: Sequence[int], num_samples: int, seed: int = 0) -> Bools:
    """[N, n] with so many right samples per prompt, in a random order."""
    rows = np.arange(num_samples) < np.asarray(num_right)[:, None]
    return np.random.default_rng(seed).permuted(rows, axis=1)


# ---- support ---------------------------------------------------------------------------------------------------------


def test_support_by_hand() -> None:
    ratios = {name: float(each[0]) for name, each in support_ratios(np.array([[90.0, 10.0, 3.0, 20.0]])).items()}
    assert ratios == pytest.approx({"srr": 0.9, "ndr": 0.03226, "sds": 0.06228, "nscr": -0.06796}, abs=5e-6)
    assert detectable_pass_rate(1024) == pytest.approx(2.921e-3, abs=5e-7)
    assert detectable_pass_rate(8192) == pytest.approx(3.656e-4, abs=5e-8)
    assert detectable_pass_rate(1) == pytest.approx(0.95)
    assert detectable_pass_rate(2, level=0.75) == pytest.approx(0.5)


def test_support_equals_sets_of_solved_problems() -> None:
    rng = random.Random(0)
    for _ in range(60):
        base_right, tuned_right = ([rng.choice([0, 0, 0, 1, 4]) for _ in range(rng.randint(1, 7))] for _ in range(2))
        size = min(len(base_right), len(tuned_right))
        base, tuned = outcomes(base_right[:size], 4), outcomes(tuned_right[:size], 4, seed=1)
        sets = [{index for index, count in enumerate(each[:size]) if count} for each in (base_right, tuned_right)]
        expected = reference.support(*sets, set(range(size)))
        found, metrics = support_of(base, tuned), support_metrics(base, tuned, seed=0)
        for name in ("preserved", "shrunk", "expanded", "unsolved"):
            assert getattr(found, name) == expected[name]
        for name in ("srr", "ndr", "nscr"):
            value, wanted = getattr(metrics, name).value, expected[name]
            assert math.isnan(value) if wanted is None else value == pytest.approx(float(wanted))
        if expected["sds"] is not None:
            assert metrics.sds.value == pytest.approx(float(expected["sds"]))


def test_support_score_where_the_harmonic_mean_is_not_defined() -> None:
    """The closed form says more than the harmonic mean: 0 where one of the two rates is, NaN only for 0/0."""
    assert support_ratios(np.array([[5.0, 1.0, 0.0, 0.0]]))["sds"][0] == 0.0
    assert support_ratios(np.array([[0.0, 2.0, 3.0, 0.0]]))["sds"][0] == 0.0
    assert math.isnan(support_ratios(np.array([[0.0, 2.0, 0.0, 0.0]]))["sds"][0])


def test_undefined_ratios_have_no_interval() -> None:
    metrics = support_metrics(outcomes([0] * 5, 3), outcomes([0] * 5, 3), seed=0)
    for each in (metrics.srr, metrics.ndr, metrics.sds, metrics.nscr):
        assert math.isnan(each.value)
        assert math.isnan(each.low)
        assert math.isnan(each.high)


def test_support_intervals_are_those_of_the_resampled_ratio() -> None:
    """Of problems that the base solves: the retention rate is a mean of zeros and ones, whose interval is known."""
    base, tuned = outcomes([2] * 50, 4), outcomes([3] * 40 + [0] * 10, 4)
    found = support_metrics(base, tuned, seed=7).srr
    expected = estimate([1.0] * 40 + [0.0] * 10, seed=7)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_support_of_repeated_prompts_is_no_surer() -> None:
    base_right, tuned_right = [0, 2, 1, 0, 3, 1, 0, 2, 2, 1] * 3, [1, 2, 0, 0, 4, 1, 2, 0, 1, 1] * 3
    once = support_metrics(outcomes(base_right, 4), outcomes(tuned_right, 4), seed=2)
    copies = support_metrics(
        outcomes(base_right * 5, 4), outcomes(tuned_right * 5, 4), seed=2, clusters=[*range(30)] * 5
    )
    for name in ("srr", "ndr", "sds", "nscr"):
        first, second = getattr(once, name), getattr(copies, name)
        assert (second.value, second.low, second.high) == pytest.approx((first.value, first.low, first.high))


def test_support_of_unlike_numbers_of_samples_is_refused() -> None:
    with pytest.raises(EvaluationError, match="8 samples per prompt and the tuned model 4"):
        support_of(outcomes([1], 8), outcomes([1], 4))


# ---- entropy ---------------------------------------------------------------------------------------------------------


def test_answer_entropy_equals_reference() -> None:
    rng = random.Random(3)
    for _ in range(20):
        answers = [rng.choice(["", "1", "2", "17"]) for _ in range(rng.randint(1, 12))]
        assert answer_entropy(answers) == pytest.approx(reference.answer_entropy(answers), abs=1e-14)


def test_answer_entropy_by_hand() -> None:
    assert answer_entropy(["7"] * 5) == 0.0
    assert answer_entropy(["7", "8"]) == pytest.approx(math.log(2))
    assert answer_entropy(["", "", "7", "7"]) == pytest.approx(math.log(2))  # missing answers are one of them
    assert answer_entropy(list("abcdefgh")) == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match="no answers"):
        answer_entropy([])


def test_mean_answer_entropy_is_over_prompts() -> None:
    found = mean_answer_entropy([["1", "1"], ["1", "2"]], seed=0)
    assert found.value == pytest.approx(math.log(2) / 2)
    assert found.low <= found.value <= found.high


def test_token_entropy_is_over_tokens() -> None:
    found = mean_token_entropy([[1.0, 0.0], [0.5, None], [None, None]], [[10, 30], [40, 7], [5, 5]], seed=0)
    assert found is not None
    assert found.value == pytest.approx((10 + 0 + 20) / 80)
    # Two prompts with 40 tokens each: 0.25 and 0.5, and their mean, are all that resamples can give.
    assert (found.low, found.high) == pytest.approx((0.25, 0.5))
    unlike = mean_token_entropy([[1.0], [0.0]], [[30], [10]], seed=0)
    assert unlike is not None
    assert unlike.value == pytest.approx(30 / 40)
    assert mean_token_entropy([[None]], [[3]], seed=0) is None
    assert mean_token_entropy([[0.4]], [[0]], seed=0) is None


# ---- comparison ------------------------------------------------------------------------------------------------------


def test_sign_flip_equals_enumeration() -> None:
    rng = random.Random(5)
    for size in (1, 2, 5, 8):
        for _ in range(10):
            sums = [Fraction(rng.randint(-4, 6), 8) for _ in range(size)]
            expected = reference.sign_flip_p_value(sums)
            assert sign_flip_p_value(np.array([float(each) for each in sums]), seed=0) == pytest.approx(float(expected))


def test_sign_flip_of_many_is_near_enumeration_and_never_0() -> None:
    sums = [3, 1, -2, 4, 1, 2, -1, 1, 3, -2, 1, 2, 1, -1]
    assert len(sums) > MAX_EXACT
    expected = float(reference.sign_flip_p_value(sums))
    found = sign_flip_p_value(np.array([float(each) for each in sums]), seed=2)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / NUM_FLIPS))
    assert found != expected
    assert sign_flip_p_value(np.ones(60), seed=0) == 1 / (NUM_FLIPS + 1)


def test_sign_flip_takes_rounding_for_equality() -> None:
    """0.1 + 0.2 - 0.3 is not 0 in floating point; the total is as far from 0 as itself whatever the order."""
    assert sign_flip_p_value(np.array([0.1, 0.2, -0.3]), seed=0) == 1.0
    assert sign_flip_p_value(np.zeros(4), seed=0) == 1.0


def test_sign_flip_of_equal_models_rejects_about_5_percent() -> None:
    rng = np.random.default_rng(6)
    trials = 300
    rejected = sum(sign_flip_p_value(rng.normal(size=11), seed=0) <= 0.05 for _ in range(trials))
    assert rejected / trials == pytest.approx(0.05, abs=0.04)


def test_comparison_by_hand() -> None:
    found = compare({1: 1.0, 2: 0.5, 3: None, 4: 0.25}, {4: 0.25, 3: 1.0, 2: 0.0, 1: 0.5}, seed=0)
    assert (found.mean, found.reference_mean) == pytest.approx((1.75 / 3, 0.25))
    assert found.difference.value == pytest.approx(1 / 3)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.0, 0.5))
    assert found.p_value == 0.5  # two of the four ways to sign two differences of 0.5
    assert (found.num_prompts, found.num_unscored) == (3, 1)


def test_comparison_of_paired_prompts_is_surer_than_of_their_means() -> None:
    rng = random.Random(2)
    reference_values = {index: rng.random() for index in range(60)}
    values = {index: each + 0.02 + 0.02 * rng.random() for index, each in reference_values.items()}
    found = compare(values, reference_values, seed=0)
    assert found.difference.low > 0
    assert found.p_value < 0.001
    swapped = compare(reference_values, values, seed=0)
    assert swapped.difference.value == pytest.approx(-found.difference.value)
    assert swapped.p_value == found.p_value


def test_comparison_of_repeated_prompts_is_no_surer() -> None:
    values, others = {i: float(i % 3 == 0) for i in range(9)}, {i: float(i == 4) for i in range(9)}
    once = compare(values, others, seed=4)
    many = compare(
        {i: values[i % 9] for i in range(90)},
        {i: others[i % 9] for i in range(90)},
        seed=4,
        clusters={i: f"text {i % 9}" for i in range(90)},
    )
    assert many.p_value == once.p_value == 10 / 16
    first, second = once.difference, many.difference
    assert (second.value, second.low, second.high) == pytest.approx((first.value, first.low, first.high))


def test_comparison_refuses_prompts_of_one_model_by_name() -> None:
    with pytest.raises(EvaluationError, match="Evaluated for the reference but not for the model: prompts 9, 10;"):
        compare({1: 0.0}, {1: 0.0, 9: 1.0, 10: 1.0}, seed=0)
    with pytest.raises(
        EvaluationError, match="for the model but not for the reference: prompts a, b, c, d, e and 2 more;"
    ):
        compare(dict.fromkeys("xabcdefg", 0.0), {"x": 0.0}, seed=0)
    with pytest.raises(EvaluationError, match="No prompt has a verdict"):
        compare({1: None}, {1: 1.0}, seed=0)


# ---- curves and where they cross -------------------------------------------------------------------------------------


def test_crossing_equals_reference() -> None:
    rng = random.Random(9)
    ks = [1, 2, 4, 8, 12]
    for _ in range(300):
        row = [Fraction(rng.randint(-2, 2), 8) for _ in ks]
        expected = reference.crossing(dict(zip(ks, row, strict=True)))
        found = crossing_points(np.array([[float(each) for each in row]]), ks)[0]
        assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_crossing_of_many_rows_is_that_of_each() -> None:
    rows = np.array([[0.5, -0.5, 0.0], [0.1, 0.1, 0.1], [-0.1, 0.0, -0.1], [0.0, 0.0, 0.0], [0.3, 0.0, -0.1]])
    found = crossing_points(rows, [1, 4, 16])
    assert found[:3] == pytest.approx([2.0, math.inf, 0.0])
    assert math.isnan(found[3])
    assert found[4] == pytest.approx(8.0)  # three quarters of the way from 1 to 16, in log k


def test_differences_of_rounding_are_no_crossing() -> None:
    assert crossing_points(np.array([[0.2, 1e-16, -1e-16]]), [1, 2, 4])[0] == math.inf


def test_curves_equal_the_mean_of_pass_at_k() -> None:
    base_right, tuned_right = [1, 0, 2, 8, 3], [4, 0, 8, 8, 0]
    curves = pass_at_k_curves_of(outcomes(base_right, 8), outcomes(tuned_right, 16), seed=0)
    assert [each.k for each in curves.points] == [1, 2, 4, 8]
    for each in curves.points:
        base = sum(pass_at_k(8, c, each.k) for c in base_right) / 5
        tuned = sum(pass_at_k(16, c, each.k) for c in tuned_right) / 5
        assert (each.base.value, each.tuned.value) == pytest.approx((base, tuned))
        assert each.difference.value == pytest.approx(tuned - base)
        assert each.difference.low <= each.difference.value <= each.difference.high
    assert curves.num_prompts == 5


def test_curve_intervals_are_those_of_the_bootstrap() -> None:
    base_right, tuned_right = [1, 0, 2, 8, 3, 5, 1], [4, 0, 8, 8, 0, 6, 1]
    point = pass_at_k_curves_of(outcomes(base_right, 8), outcomes(tuned_right, 8), seed=3, ks=[2]).points[0]
    base, tuned = ([pass_at_k(8, c, 2) for c in each] for each in (base_right, tuned_right))
    differences = [ours - theirs for ours, theirs in zip(tuned, base, strict=True)]
    for found, values in ((point.base, base), (point.tuned, tuned), (point.difference, differences)):
        expected = estimate(values, seed=3)
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert point.num_differing == 4


def test_curves_do_not_depend_on_the_order_of_samples() -> None:
    base_right, tuned_right = [1, 0, 2, 8, 3], [4, 0, 8, 8, 0]
    first = pass_at_k_curves_of(outcomes(base_right, 8), outcomes(tuned_right, 8), seed=0)
    assert first == pass_at_k_curves_of(outcomes(base_right, 8, seed=5), outcomes(tuned_right, 8, seed=6), seed=0)


def test_curves_of_repeated_prompts_are_no_surer() -> None:
    base_right, tuned_right = [1, 0, 2, 8, 3, 2, 5], [4, 0, 8, 8, 0, 1, 4]
    once = pass_at_k_curves_of(outcomes(base_right, 8), outcomes(tuned_right, 8), seed=0)
    many = pass_at_k_curves_of(
        outcomes(base_right * 4, 8), outcomes(tuned_right * 4, 8), seed=0, clusters=[*range(7)] * 4
    )
    assert many.num_prompts == 7
    assert [each.num_differing for each in many.points] == [each.num_differing for each in once.points]
    for first, second in zip(once.points, many.points, strict=True):
        assert (second.difference.low, second.difference.high) == pytest.approx(
            (first.difference.low, first.difference.high)
        )
    assert (many.crossing.k, many.crossing.low) == pytest.approx((once.crossing.k, once.crossing.low))


def test_crossing_interval_covers_the_crossing_of_many_prompts() -> None:
    """Curves of pass rates 1/2 against a mixture: tuned solves 3/4 of the prompts always and the rest never."""
    rng, covered = np.random.default_rng(0), 0
    truth = math.exp(math.log(2) * 1.0)  # 1 - 2^-k reaches 3/4 at k = 2
    for trial in range(20):
        base = rng.random((150, 16)) < 0.5
        tuned = np.repeat(rng.random((150, 1)) < 0.75, 16, axis=1)
        found = pass_at_k_curves_of(base, tuned, seed=trial, ks=range(1, 17)).crossing
        covered += found.low <= truth <= found.high
    assert covered >= 17


def test_curve_ks_end_with_all_samples() -> None:
    assert curve_ks(1) == [1]
    assert curve_ks(2) == [1, 2]
    assert curve_ks(8) == [1, 2, 4, 8]
    assert curve_ks(12) == [1, 2, 4, 8, 12]


def test_a_k_above_either_models_samples_is_refused() -> None:
    for base, tuned in ((8, 4), (4, 8)):
        with pytest.raises(EvaluationError, match=r"pass@8 .* 4 samples"):
            pass_at_k_curves_of(outcomes([1], base), outcomes([1], tuned), seed=0, ks=[1, 8])


# ---- difficulty ------------------------------------------------------------------------------------------------------


def test_difficulty_table_by_hand() -> None:
    # The first, third, ... sample of the base decides the bin, the others give its rate.
    base = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    tuned = np.array([[1, 1], [0, 1], [0, 0], [1, 0], [1, 1]], dtype=bool)
    rows = {row.label: row for row in difficulty_table(base, tuned, seed=0)}
    assert {label: row.num_prompts for label, row in rows.items()} == {
        "never right": 2,
        "25% to 50%": 1,
        "always right": 2,
    }
    assert (rows["never right"].base.value, rows["never right"].tuned.value) == (0.5, 0.75)
    assert rows["never right"].difference.value == 0.25
    assert (rows["25% to 50%"].base.value, rows["25% to 50%"].tuned.value) == (0.5, 0.0)
    assert rows["always right"].difference.value == pytest.approx(0.0)


def test_every_prompt_is_in_one_bin() -> None:
    base = outcomes(range(33), 64)
    base = np.stack([base[:, :32], base[:, 32:]], axis=2).reshape(33, 64)
    rows = difficulty_table(base, base, seed=0)
    assert sum(row.num_prompts for row in rows) == 33


def test_a_model_is_no_better_than_itself_at_any_difficulty() -> None:
    """Bins made with the very samples that are compared would show gains on hard and losses on easy prompts."""
    rng = np.random.default_rng(1)
    rates = rng.random((2000, 1))
    base, again = rng.random((2000, 8)) < rates, rng.random((2000, 8)) < rates
    rows = difficulty_table(base, again, seed=0)
    assert len(rows) == 5  # four samples are never right more than 3 and less than 4 times
    assert max(abs(row.difference.value) for row in rows) < 0.035


def test_difficulty_of_one_sample_is_refused() -> None:
    with pytest.raises(EvaluationError, match="2 or more"):
        difficulty_table(outcomes([1], 1), outcomes([1], 4), seed=0)
