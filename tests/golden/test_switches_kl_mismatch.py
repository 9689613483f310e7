"""KL estimators and mismatch corrections: values, gradients and laws against the scalar reference."""

import math
import random

import pytest
import torch

from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.mismatch import MISMATCH, Correction, MismatchSettings, finish_mismatch_metrics, mismatch_metrics
from tests.golden.cases import close, close_gradient, policy_case, tensor
from tests.reference import objectives, switches
from tests.reference.objectives import Matrix, Vector

NAN = math.nan
KL_NAMES = ("k1", "k2", "k3", "k3_ratio")
RULES = ("none", "token_tis", "sequence_tis", "icepop", "sequence_mask", "geometric")
DROPPING = ("icepop", "sequence_mask", "geometric")
LOGITS, REF_LOGITS = [0.3, -1.1, 2.0, 0.7, -0.2], [-0.5, 0.9, 1.1, -1.4, 0.0]


def log_ratio_of(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    return logprobs - old_logprobs


# KL estimators.


def test_registries_hold_the_tested_entries() -> None:
    assert set(KL_ESTIMATORS) == set(KL_NAMES)
    assert set(MISMATCH) == set(RULES)


@pytest.mark.parametrize("name", KL_NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_kl_value_and_gradient_equal_reference(name: str, seed: int) -> None:
    case = policy_case(seed)
    leaf = tensor(case.logprobs, requires_grad=True)
    actual = KL_ESTIMATORS[name](leaf, tensor(case.ref_logprobs), log_ratio_of(leaf, tensor(case.old_logprobs)))
    actual.sum().backward()
    values, slopes = [], []
    for row, ref_row, old_row in zip(case.logprobs, case.ref_logprobs, case.old_logprobs, strict=True):
        tokens = list(zip(row, ref_row, old_row, strict=True))
        values.append([switches.kl_token(name, lp, ref, lp - old) for lp, ref, old in tokens])
        for logprob, ref, old in tokens:

            def loss(point: Vector, ref: float = ref, old: float = old) -> float:
                return switches.kl_token(name, point[0], ref, point[0] - old)

            slopes.extend(objectives.numerical_gradient(loss, [logprob]))
    close(actual.detach(), values)
    close_gradient(leaf.grad, slopes)


def test_kl_by_hand() -> None:
    # pi = 1/4, ref = 1/2, so d = log 2; the ratio to the old policy is 3.
    logprobs, ref_logprobs = tensor([[math.log(0.25)]]), tensor([[math.log(0.5)]])
    log_ratio, log2 = tensor([[math.log(3.0)]]), math.log(2.0)
    expected = {"k1": -log2, "k2": log2**2 / 2, "k3": 1 - log2, "k3_ratio": 3 - 3 * log2}
    for name, value in expected.items():
        close(KL_ESTIMATORS[name](logprobs, ref_logprobs, log_ratio), [[value]])


@pytest.mark.parametrize(("name", "slope"), [("k1", 1.0), ("k2", -0.7), ("k3", 1 - math.exp(0.7))])
def test_kl_gradient_by_hand(name: str, slope: float) -> None:
    leaf = tensor([[-2.0]], requires_grad=True)
    KL_ESTIMATORS[name](leaf, tensor([[-1.3]]), log_ratio_of(leaf, tensor([[-1.0]]))).sum().backward()
    close(leaf.grad, [[slope]])


@pytest.mark.parametrize("name", KL_NAMES)
def test_reference_is_frozen(name: str) -> None:
    case = policy_case(1)
    leaf, ref_logprobs = tensor(case.logprobs, requires_grad=True), tensor(case.ref_logprobs, requires_grad=True)
    KL_ESTIMATORS[name](leaf, ref_logprobs, log_ratio_of(leaf, tensor(case.old_logprobs))).sum().backward()
    assert leaf.grad.any()
    assert ref_logprobs.grad is None or not ref_logprobs.grad.any()


@pytest.mark.parametrize(("name", "factor"), [("k3", 1.0), ("k3_ratio", 1.5)])
def test_difference_of_the_exponential_is_clamped(name: str, factor: float) -> None:
    log_ratio = torch.full((1, 2), math.log(factor), dtype=torch.float64)
    actual = KL_ESTIMATORS[name](tensor([[-900.0, -0.1]]), tensor([[-0.5, -900.0]]), log_ratio)
    close(actual, [[factor * (math.exp(20) - 21), factor * (math.exp(-20) + 19)]])


def expected_gradient(name: str, weights: Vector, old: Vector | None = None) -> torch.Tensor:
    """Gradient in the logits of sum_v weights_v estimator(v), the weights frozen: the mean over samples, exactly."""
    logits = tensor(LOGITS, requires_grad=True)
    logprobs, ref_logprobs = torch.log_softmax(logits, 0), torch.log_softmax(tensor(REF_LOGITS), 0)
    log_ratio = logprobs - (logprobs.detach() if old is None else tensor(old).log())
    (tensor(weights) * KL_ESTIMATORS[name](logprobs, ref_logprobs, log_ratio)).sum().backward()
    return logits.grad


def test_expected_k3_gradient_is_that_of_the_forward_kl() -> None:
    policy, ref = switches.softmax(LOGITS), switches.softmax(REF_LOGITS)

    def forward(logits: Vector) -> float:
        return switches.kl_divergence(ref, switches.softmax(logits))

    actual = expected_gradient("k3", policy)
    close(actual, [p - q for p, q in zip(policy, ref, strict=True)])
    close_gradient(actual, objectives.numerical_gradient(forward, LOGITS))


def test_expected_k1_gradient_is_zero() -> None:
    close(expected_gradient("k1", switches.softmax(LOGITS)), [0.0] * len(LOGITS))


def reverse_kl_gradient() -> Vector:
    ref = switches.softmax(REF_LOGITS)
    return objectives.numerical_gradient(lambda z: switches.kl_divergence(switches.softmax(z), ref), LOGITS)


def test_expected_k2_gradient_is_that_of_the_reverse_kl() -> None:
    close_gradient(expected_gradient("k2", switches.softmax(LOGITS)), reverse_kl_gradient())


def test_expected_k3_ratio_gradient_is_that_of_the_reverse_kl_for_samples_of_an_older_policy() -> None:
    old = switches.softmax([0.1, -0.4, 1.2, 1.5, 0.6])
    close_gradient(expected_gradient("k3_ratio", old, old), reverse_kl_gradient())


def test_expected_values_of_k1_and_k3_are_the_kl() -> None:
    policy, ref = switches.softmax(LOGITS), switches.softmax(REF_LOGITS)
    logprobs, ref_logprobs = tensor(policy).log(), tensor(ref).log()
    for name in ("k1", "k3"):
        values = KL_ESTIMATORS[name](logprobs, ref_logprobs, torch.zeros_like(logprobs))
        close((tensor(policy) * values).sum(), switches.kl_divergence(policy, ref))


# Mismatch between the sampler and the trainer.

RHOS = (0.5, 0.9, 1.0, 1.2, 1.5, 20.0)
MASK = [
    [True, True, True, True, True, True, True],
    [True, False, True, True, False, False, False],
    [True, True, True, False, False, False, False],
    [False, False, False, False, False, False, False],
    [False, True, False, False, False, False, False],
    [True, True, True, True, True, False, False],
]


def mismatch_case(seed: int) -> tuple[Matrix, Matrix]:
    """(old, sampling) log-probs whose ratios walk through RHOS on the mask; NaN or inf off it."""
    rng = random.Random(seed)
    rhos = list(RHOS)
    rng.shuffle(rhos)
    old, sampling, number = [], [], 0
    for row in MASK:
        old_row, sampling_row = [], []
        for keep in row:
            logprob = -rng.uniform(0.1, 4.0)
            old_row.append(logprob if keep else rng.choice([NAN, math.inf, -math.inf, logprob]))
            rho = rhos[number % len(rhos)] * rng.uniform(0.97, 1.03)
            sampling_row.append(logprob - math.log(rho) if keep else rng.choice([NAN, math.inf, -math.inf]))
            number += keep
        old.append(old_row)
        sampling.append(sampling_row)
    return old, sampling


def corrected(rule: str, old: Matrix, sampling: Matrix, mask: list[list[bool]], low: float, high: float) -> Correction:
    return MISMATCH[rule](tensor(old), tensor(sampling), torch.tensor(mask), MismatchSettings(low=low, high=high))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("low", "high"), [(0.6, 1.4), (0.95, 2.0), (0.1, 30.0), (0.0, 3.0)])
def test_correction_equals_reference(rule: str, seed: int, low: float, high: float) -> None:
    old, sampling = mismatch_case(seed)
    actual, mask = corrected(rule, old, sampling, MASK, low, high), torch.tensor(MASK)
    assert actual.weights.shape == actual.keep_mask.shape == mask.shape
    assert actual.keep_mask.dtype == torch.bool
    assert torch.isfinite(actual.weights).all()
    rows = [switches.correction_row(rule, old[b], sampling[b], MASK[b], low, high) for b in range(len(MASK))]
    close(torch.where(mask, actual.weights, 1.0), [weights for weights, _ in rows])
    assert (actual.keep_mask & mask).tolist() == [kept for _, kept in rows]


def test_token_weights_by_hand() -> None:
    old = [[0.0] * len(RHOS)]
    sampling = [[-math.log(rho) for rho in RHOS]]
    mask = [[True] * len(RHOS)]
    close(corrected("token_tis", old, sampling, mask, 0.7, 1.3).weights, [[0.7, 0.9, 1.0, 1.2, 1.3, 1.3]])
    actual = corrected("icepop", old, sampling, mask, 0.7, 1.3)
    close(actual.weights, [[0.0, 0.9, 1.0, 1.2, 0.0, 0.0]])
    assert actual.keep_mask.tolist() == [[False, True, True, True, False, False]]


def test_sequence_weights_by_hand() -> None:
    # Products 2 x 2 x 1/2 = 2, 3 x 3 = 9 and 1/2 x 1/4 = 1/8; geometric means 2^(1/3), 3 and 8^(-1/2).
    rhos = [[2.0, 2.0, 0.5], [3.0, NAN, 3.0], [0.5, 0.25, NAN]]
    mask = [[True, True, True], [True, False, True], [True, True, False]]
    old = [[0.0] * 3] * 3
    sampling = [[-math.log(rho) if rho == rho else NAN for rho in row] for row in rhos]
    kept = torch.tensor(mask)
    close(corrected("sequence_tis", old, sampling, mask, 0.5, 4.0).weights[kept], [2, 2, 2, 4, 4, 0.125, 0.125])
    actual = corrected("sequence_mask", old, sampling, mask, 0.5, 4.0)
    close(actual.weights[kept], [2, 2, 2, 0, 0, 0, 0])
    assert actual.keep_mask[kept].tolist() == [True] * 3 + [False] * 4
    actual = corrected("geometric", old, sampling, mask, 0.3, 1.3)
    close(actual.weights[kept], [1, 1, 1, 0, 0, 1, 1])
    assert actual.keep_mask[kept].tolist() == [True] * 3 + [False] * 2 + [True] * 2


@pytest.mark.parametrize("rule", DROPPING)
def test_bounds_belong_to_the_kept_range(rule: str) -> None:
    actual = corrected(rule, [[-1.0, -2.0]], [[-1.0, -2.0]], [[True, True]], 1.0, 1.0)
    assert actual.weights.tolist() == [[1.0, 1.0]]
    assert actual.keep_mask.tolist() == [[True, True]]


@pytest.mark.parametrize(("sampling", "limit"), [(-40.0, 20.0), (0.0, -20.0)])
def test_sequence_product_is_clamped_before_the_exponential(sampling: float, limit: float) -> None:
    old = [[-20.0, -20.0]]
    actual = corrected("sequence_tis", old, [[sampling, sampling]], [[True, True]], 0.0, 1e12)
    close(actual.weights, [[math.exp(limit)] * 2])


@pytest.mark.parametrize("rule", RULES)
def test_no_mismatch_changes_nothing(rule: str) -> None:
    old, _ = mismatch_case(3)
    actual, mask = corrected(rule, old, old, MASK, 0.5, 2.0), torch.tensor(MASK)
    assert actual.weights[mask].tolist() == [1.0] * int(mask.sum())
    assert actual.keep_mask[mask].all()


@pytest.mark.parametrize("rule", RULES)
def test_row_without_sampling_logprobs_is_not_corrected(rule: str) -> None:
    old, sampling = [[-5.0, -3.0, -1.0], [-0.1, -4.0, -2.0]], [[NAN] * 3, [-0.1, -4.0, -2.0]]
    actual = corrected(rule, old, sampling, [[True] * 3] * 2, 0.9, 1.1)
    assert actual.weights.tolist() == [[1.0] * 3] * 2
    assert actual.keep_mask.all()


@pytest.mark.parametrize("rule", ["token_tis", "icepop"])
def test_token_without_sampling_logprob_is_not_corrected(rule: str) -> None:
    actual = corrected(rule, [[-1.0, -9.0, -2.0]], [[-1.1, NAN, -1.9]], [[True] * 3], 0.8, 1.2)
    close(actual.weights, [[math.exp(0.1), 1.0, math.exp(-0.1)]])
    assert actual.keep_mask.all()


def test_token_without_sampling_logprob_leaves_the_product_of_the_others() -> None:
    # 2 x 3 = 6 at the tokens that have a ratio.
    sampling = [[-math.log(2.0), NAN, -math.log(3.0)]]
    for rule in ("sequence_tis", "sequence_mask"):
        weights = corrected(rule, [[0.0, -7.0, 0.0]], sampling, [[True] * 3], 0.5, 10.0).weights
        close(weights[0, [0, 2]], [6.0, 6.0])
        assert torch.isfinite(weights).all()


@pytest.mark.parametrize("rule", RULES)
def test_correction_is_a_constant(rule: str) -> None:
    old, sampling = mismatch_case(0)
    leaves = tensor(old, requires_grad=True), tensor(sampling, requires_grad=True)
    actual = MISMATCH[rule](*leaves, torch.tensor(MASK), MismatchSettings(low=0.5, high=2.0))
    assert not actual.weights.requires_grad


def metrics_of(rule: str, old: Matrix, sampling: Matrix, mask: list[list[bool]], low: float = 0.6, high: float = 1.4):
    correction = corrected(rule, old, sampling, mask, low, high)
    return mismatch_metrics(tensor(old), tensor(sampling), torch.tensor(mask), correction)


def finished(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in finish_mismatch_metrics(sums).items()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_equal_reference(rule: str, seed: int) -> None:
    old, sampling = mismatch_case(seed)
    kept = [switches.correction_row(rule, old[b], sampling[b], MASK[b], 0.6, 1.4)[1] for b in range(len(MASK))]
    expected = switches.mismatch_metrics(old, sampling, MASK, kept)
    actual = finished(metrics_of(rule, old, sampling, MASK))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_metrics_by_hand() -> None:
    # rho 1/2, 1, 2 (and one masked): sum 7/2, squares 21/4; k3 = rho - 1 - log rho sums to 1/2 as the logs cancel.
    sampling = [[math.log(2.0), 0.0, -math.log(2.0), NAN]]
    actual = finished(metrics_of("icepop", [[0.0] * 4], sampling, [[True, True, True, False]], 0.75, 1.5))
    assert actual["sampler/masked_frac"] == pytest.approx(2 / 3, rel=1e-9)
    assert actual["sampler/rho_mean"] == pytest.approx(7 / 6, rel=1e-9)
    assert actual["sampler/ess"] == pytest.approx(12.25 / (3 * 5.25), rel=1e-9)
    assert actual["sampler/mismatch_kl"] == pytest.approx(1 / 6, rel=1e-9)
    assert actual["sampler/chi2"] == pytest.approx(5.25 / 3 - 1, rel=1e-9)
    assert actual["sampler/logprob_diff_mean"] == pytest.approx(2 * math.log(2.0) / 3, rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_sums_of_two_ranks_add_up_to_the_whole(rule: str) -> None:
    old, sampling = mismatch_case(1)
    whole = metrics_of(rule, old, sampling, MASK)
    parts = [metrics_of(rule, old[rows], sampling[rows], MASK[rows]) for rows in (slice(0, 2), slice(2, 6))]
    added = finished({name: parts[0][name] + parts[1][name] for name in whole})
    for name, value in finished(whole).items():
        assert added[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_batch_without_loss_tokens_adds_nothing_and_has_finite_metrics() -> None:
    sums = metrics_of("icepop", [[NAN, -1.0]], [[NAN, math.inf]], [[False, False]])
    assert all(float(value) == 0.0 for value in sums.values())
    assert all(math.isfinite(value) for value in finished(sums).values())


def test_metrics_of_a_batch_without_sampling_logprobs_are_those_of_no_mismatch() -> None:
    actual = finished(metrics_of("icepop", [[-1.0, -2.0]], [[NAN, NAN]], [[True, True]]))
    expected = {"masked_frac": 0.0, "ess": 1.0, "mismatch_kl": 0.0, "rho_mean": 1.0}
    expected |= {"chi2": 0.0, "logprob_diff_mean": 0.0}
    assert actual == {f"sampler/{name}": value for name, value in expected.items()}


def test_metrics_of_rho_are_of_the_tokens_with_a_sampling_logprob() -> None:
    old, sampling = [[0.0, 0.0, -1.0]], [[-math.log(2.0), math.log(4.0), NAN]]
    actual = finished(metrics_of("icepop", old, sampling, [[True] * 3], 0.5, 4.0))
    assert actual["sampler/rho_mean"] == pytest.approx((2 + 0.25) / 2, rel=1e-9)
    assert actual["sampler/ess"] == pytest.approx(2.25**2 / (2 * 4.0625), rel=1e-9)
    assert actual["sampler/mismatch_kl"] == pytest.approx((0.25 + math.log(2.0)) / 2, rel=1e-9)
    # The share dropped is of all loss tokens.
    assert actual["sampler/masked_frac"] == pytest.approx(1 / 3, rel=1e-9)
