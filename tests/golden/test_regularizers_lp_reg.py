"""Lp-Reg by hand: selection, scopes, both divergences, the warning, and what its gradients mean on a small softmax."""

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlvr.objectives.regularizers.base import LiveTokens, Regularizer
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import TokenStats, token_stats
from tests.golden.cases import close, tensor
from tests.golden.regularizer_cases import (
    RATIOS,
    StepCase,
    apply,
    denominator_of,
    hand_case,
    on_two_ranks,
    one_of,
    step_tokens_of,
)
from tests.reference import regularizers as reference
from tests.reference.objectives import Matrix, Vector
from tests.reference.switches import softmax

HALF = math.log(0.5)
LOGITS = [1.3, 0.2, -0.4, -1.1, -3.0, -3.4]
DIRECTIONS = pytest.mark.parametrize("direction", ["forward", "reverse"])


def lp_reg(**settings: Any) -> Regularizer:
    return one_of({"lp_reg": {"coef": 1.0, "share": 1.0} | settings})


def selected(case: StepCase, **settings: Any) -> list[reference.Place]:
    """The tokens on which the exact divergence is wanted."""
    tokens = step_tokens_of(case)
    chosen = lp_reg(kl="exact_vocab", **settings).prepare(tokens).support_mask
    assert chosen is not None
    assert chosen.dtype == torch.bool
    assert chosen.shape == tokens.mask.shape
    return reference.places(chosen.tolist())


def row_case(logprobs: Vector, **changes: Any) -> StepCase:
    """One row of failed, kept tokens with Z = 1/2, on-policy."""
    size = len(logprobs)
    given: dict[str, Any] = {"advantages": [[-1.0] * size], "log_kept_mass": [[HALF] * size]}
    return hand_case(logprobs=[logprobs], **(given | changes))


# Selection.


def test_every_condition_of_the_selection_is_needed() -> None:
    case = row_case(
        [-2.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0],
        mask=[[True, True, True, True, True, True, False]],
        advantages=[[-1.0, 1.0, 0.0, -1.0, -1.0, -1.0, -1.0]],
        kept=[[True, True, True, False, True, True, True]],
        log_kept_mass=[[HALF, HALF, HALF, -math.inf, 0.0, HALF, HALF]],
    )
    assert selected(case) == [(0, 0), (0, 5)]
    # Not that the sampled token is unlikely, but that it is under the proxy: -2 - log .5 = -1.3.
    under = replace(case, current=replace(case.current, logprobs=[[-1.31] * 7]))
    over = replace(case, current=replace(case.current, logprobs=[[-1.30] * 7]))
    assert selected(under) == [(0, 0), (0, 5)]
    assert selected(over) == []


def test_proxy_is_a_strict_bound() -> None:
    # On-policy with Z = 1 the token is at the proxy, with 2 at half of it.
    assert selected(row_case([-2.0, -3.0], log_kept_mass=[[0.0, 0.0]])) == []
    assert selected(row_case([-2.0, -3.0], old=[[-1.99, -3.0]], log_kept_mass=[[0.0, 0.0]])) == [(0, 0)]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0002, [1]), (0.39, [1]), (0.4, [1, 3]), (0.5, [1, 3]), (0.7, [1, 3, 4]), (0.8, [0, 1, 3, 4]), (1.0, range(5))],
)
def test_lowest_of_the_whole_batch(share: float, expected: list[int]) -> None:
    case = row_case([-2.0, -6.0, -1.0, -5.0, -3.0])
    assert selected(case, share=share) == [(0, t) for t in expected]


def test_batch_counts_tokens_that_cannot_be_selected() -> None:
    # The two lowest are a success and a token that the filter dropped: nothing is left of 2 of 5.
    case = row_case(
        [-2.0, -6.0, -1.0, -5.0, -3.0],
        advantages=[[-1.0, 1.0, -1.0, -1.0, -1.0]],
        kept=[[True, True, True, False, True]],
    )
    assert selected(case, share=0.4) == []
    assert selected(case, share=0.6) == [(0, 4)]
    # Of the three failures alone the lowest would be -3.
    case = row_case([-2.0, -6.0, -1.0, -5.0, -3.0], advantages=[[-1.0, 1.0, -1.0, 1.0, -1.0]])
    assert selected(case, share=0.4) == []


def test_ties_at_the_bound_are_all_selected() -> None:
    assert selected(row_case([-2.0, -2.0, -1.0, -2.0]), share=0.25) == [(0, 0), (0, 1), (0, 3)]


def test_lowest_of_a_micro_batch() -> None:
    # Micro-batch 0: four failed tokens, half of them 2; micro-batch 1: three, half of them 1, which is too few.
    case = hand_case(
        logprobs=[[-9.0, -1.0, -3.0], [-2.0, -4.0, -5.0], [-7.0, -8.0, -6.0]],
        advantages=[[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0] * 3],
        log_kept_mass=[[HALF] * 3] * 3,
        microbatch_ids=[0, 0, 1],
    )
    scope = {"scope": "microbatch_neg"}
    assert selected(case, share=0.5, **scope) == [(0, 2), (1, 2)]
    assert selected(case, share=0.67, **scope) == [(0, 2), (1, 2), (2, 0), (2, 1)]
    assert selected(case, share=0.4, **scope) == []
    assert selected(case, share=1.0, **scope) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    # All in one: 0.3 of seven are 2.
    assert selected(replace(case, microbatch_ids=[0] * 3), share=0.3, **scope) == [(2, 0), (2, 1)]
    # Dropped tokens count, too.
    dropped = replace(case, kept=[[True] * 3, [True] * 3, [True, False, True]])
    assert selected(dropped, share=0.67, **scope) == [(0, 2), (1, 2), (2, 0)]


def test_bound_is_that_of_all_ranks_or_of_the_own_micro_batch() -> None:
    case = hand_case(
        logprobs=[[-5.0, -6.0, -7.0, -8.0], [-1.0, -2.0, -3.0, -4.0]],
        advantages=[[-1.0] * 4] * 2,
        log_kept_mass=[[HALF] * 4] * 2,
        microbatch_ids=[0, 0],
    )

    def slopes(scope: str) -> list[int]:
        outcomes = on_two_ranks(lambda: lp_reg(share=0.5, scope=scope), case, [0])
        return [int(outcome.leaves.gradient("logprobs").count_nonzero()) for outcome in outcomes]

    assert slopes("batch_all") == [4, 0]
    assert slopes("microbatch_neg") == [2, 2]


def test_selection_is_by_the_weights_before_the_step() -> None:
    # The live policy is above the proxy by now, and is drawn back by a penalty that is not selected anew.
    case = row_case([-2.0, -2.0], live=[[-0.1, -0.1]])
    outcome = apply(lp_reg(), case, rule="token_sum")
    difference = -2.0 - HALF + 0.1
    assert outcome.loss == pytest.approx(2 * (math.exp(difference) - difference - 1))
    close(outcome.leaves.gradient("logprobs"), [[1 - math.exp(difference)] * 2])


# Value and gradient.


@DIRECTIONS
@pytest.mark.parametrize("ratio", RATIOS)
def test_token_penalty_by_hand(direction: str, ratio: float) -> None:
    # pi / old = ratio, proxy / old = 2: d = log(2 / ratio).
    case = row_case([-4.0], live=[[-4.0 + math.log(ratio)]])
    outcome = apply(lp_reg(direction=direction, coef=3.0), case, rule="token_sum")
    difference = math.log(2.0 / ratio)
    if direction == "forward":
        expected, slope = 2.0 / ratio - difference - 1.0, 1.0 - 2.0 / ratio
    else:
        expected, slope = difference**2 / 2, -difference
    assert outcome.loss == pytest.approx(3.0 * expected)
    close(outcome.leaves.gradient("logprobs"), [[3.0 * slope]])


@pytest.mark.parametrize("mass", [0.9, 0.5, 0.01])
def test_on_policy_the_forward_gradient_is_one_minus_one_over_z(mass: float) -> None:
    case = row_case([-4.0, -5.0], log_kept_mass=[[math.log(mass)] * 2])
    outcome = apply(lp_reg(), case, rule="token_sum")
    close(outcome.leaves.gradient("logprobs"), [[1 - 1 / mass] * 2])
    assert outcome.loss == pytest.approx(2 * (1 / mass + math.log(mass) - 1))


@DIRECTIONS
@pytest.mark.parametrize("scope", ["batch_all", "microbatch_neg"])
def test_unfiltered_on_policy_costs_nothing(direction: str, scope: str) -> None:
    case = row_case([-4.0, -5.0, -6.0], log_kept_mass=[[0.0] * 3])
    outcome = apply(lp_reg(direction=direction, scope=scope), case)
    assert outcome.loss == 0.0
    assert not outcome.leaves.gradient("logprobs").any()


@DIRECTIONS
def test_right_completions_cost_nothing(direction: str) -> None:
    outcome = apply(lp_reg(direction=direction), row_case([-4.0, -5.0], advantages=[[1.0, 0.0]]))
    assert outcome.loss == 0.0
    assert not outcome.leaves.gradient("logprobs").any()


@DIRECTIONS
@pytest.mark.parametrize("gap", [30.0, -30.0])
def test_difference_is_limited_without_gradient_beyond(direction: str, gap: float) -> None:
    # log proxy = -40 - log .5, d = gap; selected before the step.
    case = row_case([-40.0], live=[[-40.0 - HALF - gap]])
    outcome = apply(lp_reg(direction=direction), case, rule="token_sum")
    limit = math.copysign(20.0, gap)
    expected = math.exp(limit) - limit - 1 if direction == "forward" else 200.0
    assert outcome.loss == pytest.approx(expected)
    close(outcome.leaves.gradient("logprobs"), [[0.0]])


def test_filter_that_keeps_nothing_reaches_neither_value_nor_gradient() -> None:
    for kl in ("k3_token", "exact_vocab"):
        case = row_case([-2.0, -3.0], log_kept_mass=[[-math.inf] * 2], kept=[[False] * 2])
        outcome = apply(lp_reg(kl=kl), case)
        assert outcome.loss == 0.0
        assert not outcome.leaves.gradient("logprobs").any()
        # Beside one that counts.
        case = row_case([-2.0, -3.0], log_kept_mass=[[-math.inf, HALF]], kept=[[False, True]])
        outcome = apply(lp_reg(kl=kl), case)
        assert math.isfinite(outcome.loss)
        assert torch.isfinite(outcome.leaves.gradient("logprobs")).all()


# Exact divergences.


def live_of(chosen: Matrix, proxy: Matrix, padding: float) -> tuple[LiveTokens, torch.Tensor]:
    """One row of as many tokens as there are supports, all selected; the leaf [m, C] holds the policy."""
    size, width = len(chosen), max(map(len, chosen)) + 2
    leaf = tensor([row + [padding] * (width - len(row)) for row in chosen], requires_grad=True)
    case = row_case([-3.0] * size)
    tokens, mask = step_tokens_of(case), torch.ones(1, size, dtype=torch.bool)
    prepared = lp_reg(kl="exact_vocab").prepare(tokens)
    assert prepared.support_mask is not None
    assert prepared.support_mask.all()
    support = SupportLogprobs(policy=leaf, proxy=tensor([row + [-math.inf] * (width - len(row)) for row in proxy]))
    zeros = torch.zeros(1, size, dtype=torch.float64)
    stats = TokenStats(tokens.current.logprobs, tokens.current.entropy)
    live = LiveTokens(
        mask, zeros - 1, stats, zeros - 3, denominator_of(case.mask), "token_sum", prepared.tokens, {}, support, 1.0
    )
    return replace(live, scalars=prepared.scalars), leaf


@DIRECTIONS
@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 0.0])
def test_exact_divergence_with_any_padding(direction: str, padding: float) -> None:
    policy = [[math.log(p) for p in row] for row in ([0.5, 0.2], [0.9], [0.1, 0.2, 0.3])]
    proxy = [[math.log(p) for p in row] for row in ([0.6, 0.4], [1.0], [0.3, 0.3, 0.4])]
    live, leaf = live_of(policy, proxy, padding)
    loss = lp_reg(kl="exact_vocab", direction=direction).contribute(live).loss
    assert loss is not None
    pairs = list(zip(policy, proxy, strict=True))
    close(loss, math.fsum(reference.lp_reg_exact_loss(direction, *pair) for pair in pairs))
    loss.backward()
    slopes = [[0.0] * leaf.shape[1] for _ in policy]
    for m, (row, other) in enumerate(pairs):
        for i, (logprob, log_q) in enumerate(zip(row, other, strict=True)):
            slopes[m][i] = -math.exp(log_q) if direction == "forward" else math.exp(logprob) * (logprob - log_q)
    close(leaf.grad, slopes)


@pytest.mark.parametrize("threshold", [0.02, 0.2, 0.5])
def test_on_policy_the_exact_divergences_are_those_of_the_mass(threshold: float) -> None:
    # Forward: -log Z. Reverse: Z log Z - Z + 1.
    probs = softmax(LOGITS)
    keeps, mass = reference.kept_tokens(probs, "min_p", threshold), reference.kept_mass(probs, "min_p", threshold)
    kept = [math.log(p) for p, keep in zip(probs, keeps, strict=True) if keep]
    proxy = [logprob - math.log(mass) for logprob in kept]
    for direction, expected in (("forward", -math.log(mass)), ("reverse", mass * math.log(mass) - mass + 1)):
        live, _ = live_of([kept], [proxy], math.nan)
        loss = lp_reg(kl="exact_vocab", direction=direction).contribute(live).loss
        assert loss is not None
        close(loss.detach(), expected)


def live_softmax() -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, log-probs) of a policy that has moved off LOGITS."""
    logits = tensor([z + 0.3 * math.sin(5 * i) for i, z in enumerate(LOGITS)], requires_grad=True)
    return logits, torch.log_softmax(logits, dim=0)


def token_gradient(direction: str, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(E over tokens of the live policy of the token penalty's gradient in the logits, that of the kept mass)."""
    old = softmax(LOGITS)
    mass = math.log(reference.kept_mass(old, "min_p", threshold))
    keeps = torch.tensor(reference.kept_tokens(old, "min_p", threshold))
    logits, logprobs = live_softmax()
    # One row with every kept token once; the weights before the step are such that all are selected.
    sampled = tensor(old).log()[keeps].tolist()
    size = len(sampled)
    case = row_case(
        sampled,
        log_kept_mass=[[mass] * size],
        live=[logprobs.detach()[keeps].tolist()],
    )
    slopes = apply(lp_reg(direction=direction), case, rule="token_sum").leaves.gradient("logprobs")[0]
    assert slopes.all()
    expected = (logprobs.detach()[keeps].exp() * slopes * logprobs[keeps]).sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (of_mass,) = torch.autograd.grad(logprobs[keeps].exp().sum(), logits)
    return gradient, of_mass


def exact_gradient(direction: str, threshold: float) -> torch.Tensor:
    """That of the exact divergence in the logits."""
    old = softmax(LOGITS)
    mass = math.log(reference.kept_mass(old, "min_p", threshold))
    keeps = torch.tensor(reference.kept_tokens(old, "min_p", threshold))
    logits, logprobs = live_softmax()
    proxy = (tensor(old).log()[keeps] - mass).tolist()
    live, leaf = live_of([logprobs.detach()[keeps].tolist()], [proxy], math.nan)
    loss = lp_reg(kl="exact_vocab", direction=direction).contribute(live).loss
    assert loss is not None
    (slopes,) = torch.autograd.grad(loss, leaf)
    (gradient,) = torch.autograd.grad((slopes[0, : len(proxy)] * logprobs[keeps]).sum(), logits)
    return gradient


@pytest.mark.parametrize("threshold", [0.02, 0.2])
def test_expected_token_gradients_are_those_of_the_exact_divergences(threshold: float) -> None:
    # E_pi[d^2 / 2] has the gradient of the reverse divergence on the kept tokens; E_pi[exp(d) - d - 1] that of the
    # forward one and of the kept mass.
    reverse, _ = token_gradient("reverse", threshold)
    close(reverse, exact_gradient("reverse", threshold).tolist(), atol=1e-10)
    forward, of_mass = token_gradient("forward", threshold)
    close(forward, (exact_gradient("forward", threshold) + of_mass).tolist(), atol=1e-10)
    assert reverse.abs().max() > 1e-3
    assert forward.abs().max() > 1e-3
    assert of_mass.abs().max() > 1e-3


@pytest.mark.parametrize(("proxy", "threshold"), [("min_p", 0.05), ("min_p", 0.5), ("fixed", 0.06), ("fixed", 0.9)])
def test_frozen_statistics_are_those_of_the_filter(proxy: str, threshold: float) -> None:
    # From the head to the loss: what the regulariser asks for is what its rule speaks of.
    probs, regularizer = softmax(LOGITS), lp_reg(proxy=proxy, threshold=threshold)
    size = len(probs)
    hidden, head = tensor([LOGITS] * size), torch.eye(size, dtype=torch.float64)
    request = regularizer.needs.sampled
    stats = token_stats(hidden, head, None, torch.arange(size), temperature=1.0, tile_tokens=4, request=request)
    keeps, mass = reference.kept_tokens(probs, proxy, threshold), reference.kept_mass(probs, proxy, threshold)
    assert stats.kept is not None
    assert stats.log_kept_mass is not None
    assert stats.kept.tolist() == keeps
    close(stats.log_kept_mass, [math.log(mass) if mass > 0 else -math.inf] * size)
    logs = [math.log(p) for p in probs]
    case = row_case(logs, log_kept_mass=[stats.log_kept_mass.tolist()], kept=[stats.kept.tolist()])
    outcome = apply(regularizer, case, rule="token_sum")
    close(outcome.leaves.gradient("logprobs"), [[1 - 1 / mass if keep else 0.0 for keep in keeps]])


# The warning.


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


@pytest.mark.parametrize("scope", ["batch_all", "microbatch_neg"])
def test_warning_when_hardly_anything_is_selected(scope: str, caplog: pytest.LogCaptureFixture) -> None:
    for count in range(4):
        kept = [[t < count for t in range(4)]]
        apply(lp_reg(scope=scope), row_case([-2.0, -3.0, -4.0, -5.0], kept=kept))
        found = warnings_of(caplog)
        if count >= 2:
            assert found == []
        else:
            assert len(found) == 1
            assert str(count) in found[0]


def test_warning_counts_the_tokens_of_all_ranks(caplog: pytest.LogCaptureFixture) -> None:
    case = hand_case(logprobs=[[-2.0], [-3.0]], advantages=[[-1.0]] * 2, log_kept_mass=[[HALF]] * 2)
    on_two_ranks(lp_reg, case, [0])
    assert warnings_of(caplog) == []
    on_two_ranks(lp_reg, replace(case, advantages=[[-1.0], [1.0]]), [0])
    assert warnings_of(caplog)
