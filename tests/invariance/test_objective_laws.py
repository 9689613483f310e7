"""Laws the objective obeys whatever its inputs: splits, padding, permutations, on-policy gradients, scaling."""

import math
import random
from functools import partial

import pytest
import torch

from rlvr.objectives.advantage import ADVANTAGES
from rlvr.objectives.aggregation import Denominator, aggregate
from rlvr.objectives.kl import KL_ESTIMATORS
from rlvr.objectives.policy_loss import POLICY_LOSSES, PolicySettings
from rlvr.objectives.ratio import RATIO_LEVELS
from tests.golden.cases import CLIP_HIGH, CLIP_LOW, COLUMNS, ROWS, RULES, close, policy_case, reward_case, tensor

SEEDS = [10, 11, 12]
KL_COEF = 0.2
# Neither rule reads the lengths.
group_advantage, centered_advantage = (
    partial(ADVANTAGES[name], num_tokens=torch.empty(0)) for name in ("group", "centered")
)
# Rows of each micro-batch; row 3 of a case has no loss token, so that the last split has a micro-batch without any.
SPLITS = [[[0, 1], [2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 0, 2, 1], [3]]]


def step_of(mask: torch.Tensor) -> Denominator:
    return Denominator(
        num_loss_tokens=float(mask.sum()),
        num_sequences=float(mask.any(dim=1).sum()),
        num_rows=float(mask.shape[0]),
        max_completion_length=6,
    )


def clipped_policy_loss(logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    log_ratio = RATIO_LEVELS["token"](logprobs, old_logprobs, torch.ones_like(logprobs, dtype=torch.bool))
    return POLICY_LOSSES["clip"](logprobs, log_ratio, advantages, PolicySettings(CLIP_LOW, CLIP_HIGH))


def k3_penalty(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    return KL_ESTIMATORS["k3"](logprobs, ref_logprobs, torch.zeros_like(logprobs))


def loss_of(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    step: Denominator,
    rule: str,
) -> torch.Tensor:
    losses = clipped_policy_loss(logprobs, old_logprobs, advantages)
    return aggregate(losses + KL_COEF * k3_penalty(logprobs, ref_logprobs), mask, step, rule)


def batch_of(seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(logprobs, old, ref, advantages) and the mask."""
    case = policy_case(seed)
    tensors = [tensor(values) for values in (case.logprobs, case.old_logprobs, case.ref_logprobs, case.advantages)]
    return tensors, torch.tensor(case.mask)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("split", SPLITS)
def test_micro_batches_sum_to_the_step(rule: str, seed: int, split: list[list[int]]) -> None:
    batch, mask = batch_of(seed)
    whole_leaf = batch[0].clone().requires_grad_()
    whole = loss_of(whole_leaf, *batch[1:], mask, step_of(mask), rule)
    whole.backward()

    leaf = batch[0].clone().requires_grad_()
    total = 0.0
    for rows in split:
        part = loss_of(leaf[rows], *(values[rows] for values in batch[1:]), mask[rows], step_of(mask), rule)
        part.backward()
        total += part.item()
    close(whole, total)
    close(leaf.grad, whole_leaf.grad.tolist())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_columns_change_nothing(rule: str, seed: int, side: str) -> None:
    batch, mask = batch_of(seed)
    rng = torch.Generator().manual_seed(seed)
    pad = 3

    def padded(values: torch.Tensor, filler: torch.Tensor) -> torch.Tensor:
        return torch.cat([filler, values] if side == "left" else [values, filler], dim=1)

    leaf = batch[0].clone().requires_grad_()
    loss = loss_of(leaf, *batch[1:], mask, step_of(mask), rule)
    loss.backward()

    wide = [padded(values, torch.randn(ROWS, pad, generator=rng, dtype=torch.float64)) for values in batch]
    wide_mask = padded(mask, torch.zeros(ROWS, pad, dtype=torch.bool))
    wide[0].requires_grad_()
    wide_loss = loss_of(*wide, wide_mask, step_of(wide_mask), rule)
    wide_loss.backward()

    close(wide_loss, loss.item())
    inner = slice(pad, None) if side == "left" else slice(None, COLUMNS)
    close(wide[0].grad[:, inner], leaf.grad.tolist())
    assert not wide[0].grad[~wide_mask].any()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", SEEDS)
def test_permuting_rows_leaves_the_loss(rule: str, seed: int) -> None:
    batch, mask = batch_of(seed)
    order = [3, 0, 4, 2, 1]
    loss = loss_of(*batch, mask, step_of(mask), rule)
    permuted = loss_of(*(values[order] for values in batch), mask[order], step_of(mask), rule)
    close(permuted, loss.item())


@pytest.mark.parametrize("rule", RULES)
def test_masked_tokens_have_no_influence(rule: str) -> None:
    batch, mask = batch_of(10)
    changed = [torch.where(mask, values, values - 1.7) for values in batch]
    close(loss_of(*changed, mask, step_of(mask), rule), loss_of(*batch, mask, step_of(mask), rule).item())


def test_rules_agree_only_on_rows_of_full_length() -> None:
    values, _ = batch_of(10)
    full = torch.ones(ROWS, COLUMNS, dtype=torch.bool)
    step = Denominator(
        num_loss_tokens=float(full.sum()), num_sequences=ROWS, num_rows=ROWS, max_completion_length=COLUMNS
    )
    results = [aggregate(values[0], full, step, rule).item() for rule in RULES]
    assert results == pytest.approx([values[0].mean().item()] * 3, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_constant_values_aggregate_to_their_share(rule: str) -> None:
    _, mask = batch_of(11)
    actual = aggregate(torch.full((ROWS, COLUMNS), 3.0, dtype=torch.float64), mask, step_of(mask), rule)
    share = float(mask.sum()) / (ROWS * 6) if rule == "constant" else 1.0
    close(actual, 3.0 * share)


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_value_is_minus_advantage_and_gradient_is_reinforce(seed: int) -> None:
    batch, _ = batch_of(seed)
    logprobs, advantages = batch[0].requires_grad_(), batch[3]
    losses = clipped_policy_loss(logprobs, logprobs.detach(), advantages)
    close(losses, (-advantages).tolist())
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    # REINFORCE: the gradient of -A log pi.
    (expected,) = torch.autograd.grad((-advantages * logprobs).sum(), logprobs)
    close(gradient, expected.tolist())


def test_old_logprobs_equal_to_logprobs_with_a_graph_count_as_constants() -> None:
    batch, _ = batch_of(12)
    logprobs = batch[0].requires_grad_()
    losses = clipped_policy_loss(logprobs, logprobs, batch[3])
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    close(gradient, (-batch[3]).tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_k3_is_positive_and_flat_at_the_reference(seed: int) -> None:
    batch, _ = batch_of(seed)
    assert (k3_penalty(batch[0], batch[2]) > 0).all()
    logprobs = batch[0].clone().requires_grad_()
    penalty = k3_penalty(logprobs, batch[0])
    penalty.sum().backward()
    close(penalty, [[0.0] * COLUMNS] * ROWS)
    close(logprobs.grad, [[0.0] * COLUMNS] * ROWS)


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_a_group_sum_to_zero(advantage, seed: int) -> None:
    case = reward_case(seed)
    groups = torch.tensor(case.group_ids)
    actual = advantage(tensor(case.rewards), groups, ddof=1, eps=1e-4)
    for group in set(case.group_ids):
        assert actual[groups == group].sum().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_group_advantages_have_unit_standard_deviation(ddof: int, seed: int) -> None:
    case = reward_case(seed)
    groups, rewards = torch.tensor(case.group_ids), tensor(case.rewards)
    actual = group_advantage(rewards, groups, ddof=ddof, eps=1e-13)
    for group in (4, 9, 2, 30):
        members = actual[(groups == group) & ~rewards.isnan()]
        assert members.std(correction=ddof).item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_scaling_rewards_leaves_group_advantages(ddof: int, seed: int) -> None:
    case = reward_case(seed)
    rewards, groups = tensor(case.rewards), torch.tensor(case.group_ids)
    one = group_advantage(rewards, groups, ddof=ddof, eps=1e-13)
    ten = group_advantage(10 * rewards, groups, ddof=ddof, eps=1e-13)
    close(ten, one.tolist())
    # With an eps that shows, the larger scale is shrunk less, by at most eps / std.
    one = group_advantage(rewards, groups, ddof=ddof, eps=1e-2)
    ten = group_advantage(10 * rewards, groups, ddof=ddof, eps=1e-2)
    moved = one != 0
    assert (ten[moved].abs() > one[moved].abs()).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_scaling_rewards_scales_centered_advantages(seed: int) -> None:
    case = reward_case(seed)
    rewards, groups = tensor(case.rewards), torch.tensor(case.group_ids)
    one = centered_advantage(rewards, groups, ddof=1, eps=1e-4)
    close(centered_advantage(10 * rewards, groups, ddof=1, eps=1e-4), (10 * one).tolist())


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
@pytest.mark.parametrize("seed", SEEDS)
def test_shifting_one_groups_rewards_changes_nothing(advantage, seed: int) -> None:
    case = reward_case(seed)
    groups = torch.tensor(case.group_ids)
    rewards = tensor(case.rewards)
    shifted = torch.where(groups == 30, rewards + 3.0, rewards)
    one = advantage(rewards, groups, ddof=1, eps=1e-4)
    close(advantage(shifted, groups, ddof=1, eps=1e-4), one.tolist())


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
@pytest.mark.parametrize("seed", SEEDS)
def test_permuting_members_permutes_advantages(advantage, seed: int) -> None:
    case = reward_case(seed)
    order = list(range(len(case.rewards)))
    random.Random(seed).shuffle(order)
    rewards, groups = tensor(case.rewards), torch.tensor(case.group_ids)
    one = advantage(rewards, groups, ddof=1, eps=1e-4)
    close(advantage(rewards[order], groups[order], ddof=1, eps=1e-4), one[order].tolist())


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
def test_groups_do_not_see_each_other(advantage) -> None:
    case = reward_case(13)
    rewards, groups = tensor(case.rewards), torch.tensor(case.group_ids)
    together = advantage(rewards, groups, ddof=1, eps=1e-4)
    for group in set(case.group_ids):
        alone = advantage(rewards[groups == group], groups[groups == group], ddof=1, eps=1e-4)
        close(alone, together[groups == group].tolist())


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
def test_adding_an_unscorable_member_changes_nothing(advantage) -> None:
    rewards, groups = [0.5, 2.0, 1.0, 0.0], [1, 2, 1, 2]
    without = advantage(tensor(rewards), torch.tensor(groups), ddof=1, eps=1e-4)
    extended = advantage(tensor([*rewards, math.nan]), torch.tensor([*groups, 1]), ddof=1, eps=1e-4)
    close(extended, [*without.tolist(), 0.0])
