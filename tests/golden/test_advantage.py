"""Advantages against the scalar reference and against values worked out by hand."""

import math
from functools import partial

import pytest
import torch

from rlvr.objectives.advantage import ADVANTAGES
from tests.golden.cases import close, reward_case, tensor
from tests.reference import objectives as reference

EPS = 1e-4
# Neither rule reads the lengths.
group_advantage, centered_advantage = (
    partial(ADVANTAGES[name], num_tokens=torch.empty(0)) for name in ("group", "centered")
)


def ids(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [1e-6, 1e-4, 0.5])
def test_group_advantage_equals_reference(seed: int, ddof: int, eps: float) -> None:
    case = reward_case(seed)
    actual = group_advantage(tensor(case.rewards), ids(case.group_ids), ddof=ddof, eps=eps)
    close(actual, reference.group_advantage(case.rewards, case.group_ids, ddof, eps))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_centered_advantage_equals_reference(seed: int) -> None:
    case = reward_case(seed)
    actual = centered_advantage(tensor(case.rewards), ids(case.group_ids), ddof=1, eps=EPS)
    close(actual, reference.centered_advantage(case.rewards, case.group_ids))


def test_centered_advantage_uses_neither_ddof_nor_eps() -> None:
    case = reward_case(5)
    one = centered_advantage(tensor(case.rewards), ids(case.group_ids), ddof=0, eps=3.0)
    other = centered_advantage(tensor(case.rewards), ids(case.group_ids), ddof=1, eps=1e-8)
    assert torch.equal(one, other)


def test_group_advantage_by_hand() -> None:
    # Rewards 1, 0, 0, 0: mean 1/4; sum of squares 3/4, so std = sqrt(3/4 / 3) = 1/2 with ddof 1, sqrt(3)/4 with ddof 0.
    rewards, groups = tensor([1.0, 0.0, 0.0, 0.0]), ids([3, 3, 3, 3])
    close(group_advantage(rewards, groups, ddof=1, eps=0.0), [1.5, -0.5, -0.5, -0.5])
    root = math.sqrt(3)
    close(group_advantage(rewards, groups, ddof=0, eps=0.0), [root, -1 / root, -1 / root, -1 / root])
    # eps is added to the std: 0.75 / (0.5 + 0.25).
    close(group_advantage(rewards, groups, ddof=1, eps=0.25), [1.0, -1 / 3, -1 / 3, -1 / 3])


def test_unscorable_member_gets_zero_and_does_not_count() -> None:
    rewards, groups = tensor([1.0, math.nan, 0.0, 5.0, 2.0]), ids([8, 8, 8, 1, 1])
    close(centered_advantage(rewards, groups, ddof=1, eps=EPS), [0.5, 0.0, -0.5, 1.5, -1.5])
    # Standard deviation of (1, 0) with ddof 1 is sqrt(1/2); of (5, 2) it is sqrt(9/2).
    expected = [0.5 / math.sqrt(0.5), 0.0, -0.5 / math.sqrt(0.5), 1.5 / math.sqrt(4.5), -1.5 / math.sqrt(4.5)]
    close(group_advantage(rewards, groups, ddof=1, eps=0.0), expected)


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(
    "rewards",
    [[0.7], [math.nan], [0.7, math.nan], [math.nan, 0.7, math.nan], [math.nan, math.nan]],
    ids=["single", "single-unscorable", "one-of-two", "one-of-three", "none-of-two"],
)
def test_group_with_fewer_than_two_scorable_members_is_zero(advantage, ddof: int, rewards: list[float]) -> None:
    others = [1.0, 0.0, 0.0]
    actual = advantage(tensor(rewards + others), ids([5] * len(rewards) + [6] * 3), ddof=ddof, eps=EPS)
    assert actual[: len(rewards)].tolist() == [0.0] * len(rewards)
    assert actual[len(rewards)] > 0, "the other group keeps its signal"


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
@pytest.mark.parametrize("size", [2, 3, 7, 11])
def test_equal_rewards_give_exactly_zero(advantage, dtype: torch.dtype, eps: float, size: int) -> None:
    # The mean of several 0.1 rounds to something that is not 0.1; the residue must not be divided by a tiny std.
    rewards = torch.tensor([0.1] * size + [math.nan], dtype=dtype)
    actual = advantage(rewards, ids([2] * (size + 1)), ddof=1, eps=eps)
    assert actual.tolist() == [0.0] * (size + 1)


def test_nearly_equal_rewards_are_not_zeroed() -> None:
    actual = group_advantage(tensor([1.0, 1.0 + 1e-6]), ids([0, 0]), ddof=0, eps=0.0)
    close(actual, [-1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
def test_group_ids_are_only_names(advantage) -> None:
    case = reward_case(7)
    renamed = [10**12 - 7 * group for group in case.group_ids]
    one = advantage(tensor(case.rewards), ids(case.group_ids), ddof=1, eps=EPS)
    other = advantage(tensor(case.rewards), ids(renamed), ddof=1, eps=EPS)
    close(other, one.tolist())


@pytest.mark.parametrize("advantage", [group_advantage, centered_advantage])
def test_float32_rewards_give_float32_advantages(advantage) -> None:
    case = reward_case(3)
    exact = advantage(tensor(case.rewards), ids(case.group_ids), ddof=1, eps=EPS)
    actual = advantage(tensor(case.rewards).float(), ids(case.group_ids), ddof=1, eps=EPS)
    torch.testing.assert_close(actual, exact.float(), rtol=1e-4, atol=1e-5)
