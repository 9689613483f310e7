"""Ratio levels and policy losses: values, gradients and effective weights against the reference, and their laws."""

import math
import random
from dataclasses import asdict

import pytest
import torch

from rlvr.objectives.aggregation import Denominator, aggregate
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings
from rlvr.objectives.ratio import RATIO_LEVELS
from tests.golden.cases import PolicyCase, close, close_gradient, tensor
from tests.reference import objectives, switches
from tests.reference.switches import Bounds

RATIOS = (0.5, 0.9, 1.0, 1.2, 1.5, 20.0)
ADVANTAGES = (1.7, -0.6, 0.0)
LEVELS = ("token", "sequence", "sequence_token")
RULES = ("clip", "cispo", "sapo", "gppo", "reinforce")
BOUNDS = {
    "plain": Bounds(),
    "dual": Bounds(dual_clip=3.0),
    "delta": Bounds(delta=1.4),
    "both": Bounds(dual_clip=10.0, delta=4.0, cispo_cap=1.35, sapo_tau_pos=0.7, sapo_tau_neg=2.0),
}
# gppo takes the two clip bounds only: neither a dual clip nor delta is defined for it.
COMBINATIONS = [(rule, name) for rule in RULES for name in BOUNDS if rule != "gppo" or name == "plain"]
# Every place where a loss has a kink, kept away from by at least this relative distance.
KINKS, MARGIN = (0.8, 1.28, 1.35, 1.4, 3.0, 4.0, 5.0, 10.0), 0.01
COLUMNS = 5


def settings_of(bounds: Bounds) -> PolicySettings:
    return PolicySettings(**asdict(bounds))


def tokens_around(rng: random.Random, centre: float, count: int) -> list[float]:
    """Log-ratios whose mean is `centre`, none of them at a kink."""
    while True:
        logs = [centre + rng.uniform(-0.3, 0.3) for _ in range(count - 1)]
        logs.append(count * centre - math.fsum(logs))
        if all(abs(math.exp(value) / kink - 1) > MARGIN for value in logs for kink in KINKS):
            return logs


def switch_case(seed: int, constant_advantage: bool = False) -> PolicyCase:
    """A row for every sequence ratio x advantage, ragged with holes, one without a loss token; NaN off the mask."""
    rng = random.Random(seed)
    kinds = [(ratio, sign) for ratio in RATIOS for sign in ADVANTAGES]
    rng.shuffle(kinds)
    kinds.insert(4, (1.0, 1.0))
    rows: list[list[list[float]]] = [[], [], [], []]
    mask = []
    for index, (ratio, sign) in enumerate(kinds):
        count = 0 if index == 4 else 1 + index % COLUMNS
        places = sorted(rng.sample(range(COLUMNS), count))
        logs = iter(tokens_around(rng, math.log(ratio), count) if count else [])
        mask.append([t in places for t in range(COLUMNS)])
        row: list[list[float]] = [[], [], [], []]
        for t in range(COLUMNS):
            old = -rng.uniform(0.1, 4.0) if t in places else math.nan
            logprob = old + next(logs) if t in places else math.nan
            size = 1.0 if constant_advantage else rng.uniform(0.5, 1.5)
            for values, value in zip(row, (logprob, old, logprob + rng.uniform(-1, 1), sign * size), strict=True):
                values.append(value)
        for values, added in zip(rows, row, strict=True):
            values.append(added)
    return PolicyCase(*rows, mask=mask)


def losses_of(
    case: PolicyCase, logprobs: torch.Tensor, level: str, rule: str, bounds: Bounds
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, mask) as the step computes them: NaN off the mask goes into the ratio, not into the loss."""
    mask = torch.tensor(case.mask)
    log_ratio = RATIO_LEVELS[level](logprobs, tensor(case.old_logprobs), mask)
    live = torch.where(mask, logprobs, 0.0)
    return POLICY_LOSSES[rule](live, log_ratio, tensor(case.advantages), settings_of(bounds)), mask


def off_mask_zero(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, 0.0)


def test_registries_hold_the_tested_entries() -> None:
    assert set(RATIO_LEVELS) == set(LEVELS)
    assert set(POLICY_LOSSES) == set(RULES)
    assert asdict(PolicySettings(clip_low=0.2, clip_high=0.28)) == asdict(Bounds())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_log_ratio_value_and_gradient_equal_reference(level: str, seed: int) -> None:
    case, rng = switch_case(seed), random.Random(seed)
    mask, leaf = torch.tensor(case.mask), tensor(case.logprobs, requires_grad=True)
    actual = RATIO_LEVELS[level](leaf, tensor(case.old_logprobs), mask)
    assert actual.shape == mask.shape
    assert torch.isfinite(actual).all()
    # Different factors per token, so that a gradient that goes to the wrong token is seen.
    factors = [[rng.uniform(-1, 2) for _ in row] for row in case.mask]
    (off_mask_zero(actual, mask) * tensor(factors)).sum().backward()
    values, slopes = [], []
    for b, row in enumerate(case.logprobs):
        old, keep = case.old_logprobs[b], case.mask[b]
        values.append(switches.log_ratio_row(level, row, row, old, keep))

        def total(point: list[float], row=row, old=old, keep=keep, b=b) -> float:
            logs = switches.log_ratio_row(level, point, row, old, keep)
            return math.fsum(factor * log for factor, log in zip(factors[b], logs, strict=True))

        slopes.extend(objectives.numerical_gradient(total, row))
    close(off_mask_zero(actual, mask).detach(), values)
    close_gradient(leaf.grad, slopes)


def test_token_log_ratio_is_zero_off_the_mask() -> None:
    case = switch_case(0)
    mask = torch.tensor(case.mask)
    actual = RATIO_LEVELS["token"](tensor(case.logprobs), tensor(case.old_logprobs), mask)
    assert actual[~mask].tolist() == [0.0] * int((~mask).sum())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan])
def test_garbage_off_the_mask_reaches_no_ratio(level: str, garbage: float) -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    leaf = tensor([[-1.0, garbage, -2.0], [garbage] * 3], requires_grad=True)
    actual = RATIO_LEVELS[level](leaf, tensor([[-1.5, garbage, -1.0], [garbage, -1.0, garbage]]), mask)
    assert torch.isfinite(actual).all()
    close(actual[mask].detach(), [0.5, -1.0] if level == "token" else [-0.25, -0.25])
    actual.sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert not leaf.grad[~mask].any()


@pytest.mark.parametrize(("level", "limit"), [("token", 20.0), ("sequence", 10.0)])
def test_log_ratio_is_clamped_without_gradient_beyond(level: str, limit: float) -> None:
    leaf = tensor([[0.0], [-60.0], [limit - 30.5]], requires_grad=True)
    actual = RATIO_LEVELS[level](leaf, tensor([[-30.0]] * 3), torch.ones(3, 1, dtype=torch.bool))
    close(actual.detach(), [[limit], [-limit], [limit - 0.5]])
    actual.sum().backward()
    assert leaf.grad.tolist() == [[0.0], [0.0], [1.0]]


@pytest.mark.parametrize("level", LEVELS)
def test_old_logprobs_are_frozen(level: str) -> None:
    case = switch_case(1)
    logprobs, old = tensor(case.logprobs, True), tensor(case.old_logprobs, True)
    RATIO_LEVELS[level](logprobs, old, torch.tensor(case.mask)).sum().backward()
    assert logprobs.grad.abs().sum() > 0
    assert old.grad is None or not old.grad.any()


@pytest.mark.parametrize(("rule", "name"), COMBINATIONS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_token_loss_value_and_effective_weight(rule: str, advantage: float, name: str) -> None:
    bounds, logprobs = BOUNDS[name], [-0.3 - 0.4 * i for i in range(len(RATIOS))]
    leaf = tensor([logprobs], requires_grad=True)
    old = [[logprob - math.log(ratio) for logprob, ratio in zip(logprobs, RATIOS, strict=True)]]
    log_ratio = RATIO_LEVELS["token"](leaf, tensor(old), torch.ones(1, len(RATIOS), dtype=torch.bool))
    actual = POLICY_LOSSES[rule](leaf, log_ratio, tensor([[advantage] * len(RATIOS)]), settings_of(bounds))
    logs = [math.log(ratio) for ratio in RATIOS]
    close(
        actual.detach(),
        [[switches.token_loss(rule, lp, log, log, advantage, bounds) for lp, log in zip(logprobs, logs, strict=True)]],
    )
    actual.sum().backward()
    close(leaf.grad, [[-advantage * switches.effective_weight(rule, ratio, advantage, bounds) for ratio in RATIOS]])


@pytest.mark.parametrize(
    ("rule", "name", "up", "down"),
    [
        # The table of weights, written out: at ratio 0.5, 0.9, 1, 1.2, 1.5, 20 for A > 0 and A < 0.
        ("clip", "plain", [0.5, 0.9, 1, 1.2, 0, 0], [0, 0.9, 1, 1.2, 1.5, 20]),
        ("clip", "dual", [0.5, 0.9, 1, 1.2, 0, 0], [0, 0.9, 1, 1.2, 1.5, 0]),
        ("clip", "delta", [0.5, 0.9, 1, 1.2, 0, 0], [0, 0.9, 1, 1.2, 0, 0]),
        ("cispo", "plain", [0.5, 0.9, 1, 1.2, 1.5, 5], [0.5, 0.9, 1, 1.2, 1.5, 5]),
        ("gppo", "plain", [0.5, 0.9, 1, 1.2, 1.28, 1.28], [0.8, 0.9, 1, 1.2, 1.5, 20]),
        ("reinforce", "plain", [1] * 6, [1] * 6),
    ],
)
def test_effective_weights_by_hand(rule: str, name: str, up: list[float], down: list[float]) -> None:
    for advantage, weights in ((1.0, up), (-1.0, down)):
        leaf = tensor([[-1.0] * len(RATIOS)], requires_grad=True)
        old = tensor([[-1.0 - math.log(ratio) for ratio in RATIOS]])
        log_ratio = RATIO_LEVELS["token"](leaf, old, torch.ones(1, len(RATIOS), dtype=torch.bool))
        losses = POLICY_LOSSES[rule](leaf, log_ratio, torch.full_like(old, advantage), settings_of(BOUNDS[name]))
        losses.sum().backward()
        close(leaf.grad, [[-advantage * weight for weight in weights]])


@pytest.mark.parametrize(
    ("name", "losses"),
    [
        ("plain", [0.8, 0.9, 1, 1.2, 1.5, 20]),
        ("dual", [0.8, 0.9, 1, 1.2, 1.5, 3]),
        ("delta", [0.8, 0.9, 1, 1.2, 1.4, 1.4]),
    ],
)
def test_caps_of_the_clipped_loss_by_hand(name: str, losses: list[float]) -> None:
    # A = -2; neither cap touches A > 0.
    logs = tensor([[math.log(ratio) for ratio in RATIOS]])
    ones, clip, settings = torch.ones_like(logs), POLICY_LOSSES["clip"], settings_of(BOUNDS[name])
    close(clip(logs, logs, -2.0 * ones, settings), [[2 * loss for loss in losses]])
    close(clip(logs, logs, 2.0 * ones, settings), [[-1.0, -1.8, -2.0, -2.4, -2.56, -2.56]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rule", "name"), COMBINATIONS)
def test_loss_and_gradient_of_a_ragged_batch_equal_reference(level: str, rule: str, name: str) -> None:
    case, bounds = switch_case(2), BOUNDS[name]
    leaf = tensor(case.logprobs, requires_grad=True)
    losses, mask = losses_of(case, leaf, level, rule, bounds)
    off_mask_zero(losses, mask).sum().backward()
    values, slopes = [], []
    for b, row in enumerate(case.logprobs):
        given = (case.old_logprobs[b], case.advantages[b], case.mask[b], bounds)
        values.append(switches.row_loss(rule, level, row, row, *given))

        def total(point: list[float], row=row, given=given) -> float:
            return math.fsum(switches.row_loss(rule, level, point, row, *given))

        slopes.extend(objectives.numerical_gradient(total, row))
    close(off_mask_zero(losses, mask).detach(), values)
    close_gradient(leaf.grad, slopes)


def sequence_mean_of(case: PolicyCase, level: str, rule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient in the log-probs) after the sequence mean."""
    leaf = tensor(case.logprobs, requires_grad=True)
    losses, mask = losses_of(case, leaf, level, rule, Bounds())
    step = Denominator(float(mask.sum()), float(mask.any(dim=1).sum()), float(mask.shape[0]), 9)
    loss = aggregate(losses, mask, step, "sequence_mean")
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("rule", ["clip", "sapo", "gppo"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_sequence_ratios_agree_when_the_advantage_is_constant(rule: str, seed: int) -> None:
    case = switch_case(seed, constant_advantage=True)
    loss, gradient = sequence_mean_of(case, "sequence", rule)
    other_loss, other_gradient = sequence_mean_of(case, "sequence_token", rule)
    close(other_loss, loss.item())
    close(other_gradient, gradient.tolist())
    assert gradient.any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_sequence_ratios_have_equal_values(seed: int) -> None:
    case = switch_case(seed)
    mask, old = torch.tensor(case.mask), tensor(case.old_logprobs)
    one, other = (RATIO_LEVELS[name](tensor(case.logprobs), old, mask) for name in ("sequence", "sequence_token"))
    close(other[mask], one[mask].tolist())


def test_both_sequence_ratios_are_clamped_to_the_same_value() -> None:
    logprobs, old, mask = tensor([[-1.0, -3.0]]), tensor([[-15.0, -20.0]]), torch.ones(1, 2, dtype=torch.bool)
    for level in ("sequence", "sequence_token"):
        close(RATIO_LEVELS[level](logprobs, old, mask), [[10.0, 10.0]])


def test_one_long_token_moves_the_sequence_ratio_by_its_share() -> None:
    # Rows of 1 and 4 tokens: mean log-ratio 0.4, and (0.4 + 0 + 0 - 0.8) / 4 = -0.1.
    old = tensor([[-1.0, math.nan, math.nan, math.nan], [-1.0, -2.0, -3.0, -0.9]])
    logprobs = tensor([[-0.6, math.nan, math.nan, math.nan], [-0.6, -2.0, -3.0, -1.7]])
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    close(RATIO_LEVELS["sequence"](logprobs, old, mask)[mask], [0.4, -0.1, -0.1, -0.1, -0.1])


def test_on_policy_every_loss_has_the_gradient_of_reinforce() -> None:
    case = switch_case(3)
    on_policy = PolicyCase(case.logprobs, case.logprobs, case.ref_logprobs, case.advantages, case.mask)
    gradients = {}
    for rule in RULES:
        leaf = tensor(on_policy.logprobs, requires_grad=True)
        losses, mask = losses_of(on_policy, leaf, "token", rule, Bounds())
        off_mask_zero(losses, mask).sum().backward()
        gradients[rule] = leaf.grad.tolist()
    advantages = off_mask_zero(tensor(case.advantages), mask)
    for rule in RULES:
        close(tensor(gradients[rule]), (-advantages).tolist())


def test_gppo_has_the_value_of_clip_and_a_gradient_beyond_the_bounds() -> None:
    case = switch_case(4)
    gradients = {}
    values = {}
    for rule in ("clip", "gppo"):
        leaf = tensor(case.logprobs, requires_grad=True)
        losses, mask = losses_of(case, leaf, "token", rule, Bounds())
        off_mask_zero(losses, mask).sum().backward()
        gradients[rule], values[rule] = leaf.grad, losses.detach()
    close(values["gppo"][mask], values["clip"][mask].tolist())
    signal = mask & (tensor(case.advantages) != 0)
    clipped = signal & (gradients["clip"] == 0)
    assert clipped.any()
    assert (gradients["gppo"][clipped] != 0).all()
    close(gradients["gppo"][signal & ~clipped], gradients["clip"][signal & ~clipped].tolist())


@pytest.mark.parametrize(("advantage", "tau"), [(1.5, 0.7), (-1.5, 2.0)])
def test_sapo_at_ratio_one_by_hand(advantage: float, tau: float) -> None:
    # sigmoid(0) = 1/2: the loss is -2 A / tau, the weight 4 x 1/2 x 1/2 = 1 whatever tau.
    leaf = tensor([[-0.4]], requires_grad=True)
    log_ratio = RATIO_LEVELS["token"](leaf, tensor([[-0.4]]), torch.ones(1, 1, dtype=torch.bool))
    loss = POLICY_LOSSES["sapo"](leaf, log_ratio, tensor([[advantage]]), settings_of(BOUNDS["both"]))
    close(loss.detach(), [[-2 * advantage / tau]])
    loss.sum().backward()
    close(leaf.grad, [[-advantage]])


@pytest.mark.parametrize("rule", RULES)
def test_zero_advantage_has_neither_loss_nor_gradient(rule: str) -> None:
    leaf = tensor([[-0.4] * len(RATIOS)], requires_grad=True)
    old = tensor([[-0.4 - math.log(ratio) for ratio in RATIOS]])
    log_ratio = RATIO_LEVELS["token"](leaf, old, torch.ones(1, len(RATIOS), dtype=torch.bool))
    loss = POLICY_LOSSES[rule](leaf, log_ratio, torch.zeros_like(old), settings_of(BOUNDS["plain"]))
    assert not loss.any()
    loss.sum().backward()
    assert not leaf.grad.any()


@pytest.mark.parametrize("rule", RULES)
def test_losses_are_finite_at_the_ends_of_the_log_ratio(rule: str) -> None:
    log_ratio = tensor([[20.0, -20.0, 20.0, -20.0]], requires_grad=True)
    logprobs = tensor([[-0.1, -30.0, -0.1, -30.0]], requires_grad=True)
    loss = POLICY_LOSSES[rule](logprobs, log_ratio, tensor([[1.0, 1.0, -1.0, -1.0]]), settings_of(BOUNDS["plain"]))
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    for leaf in (logprobs, log_ratio):
        assert leaf.grad is None or torch.isfinite(leaf.grad).all()
