"""The further advantages and the token-sum aggregation against the scalar reference, and the laws that tie them."""

import math
import random

import pytest
import torch

from rlvr.objectives.advantage import ADVANTAGES
from rlvr.objectives.aggregation import Denominator, aggregate
from tests.golden.cases import close, close_gradient, reward_case, tensor
from tests.reference import objectives, switches
from tests.reference.objectives import Vector

SEEDS = [0, 1, 2, 3]
NAMES = ("group", "centered", "batch_std", "rloo", "reinforce_pp", "reinforce_pp_baseline", "none")
WHITENED = ("reinforce_pp", "reinforce_pp_baseline")


def lengths_of(seed: int, count: int) -> Vector:
    """Token counts of different sizes, one row without a loss token."""
    rng = random.Random(1000 + seed)
    lengths = [float(rng.randint(1, 40)) for _ in range(count)]
    lengths[count // 2] = 0.0
    return lengths


def computed(
    name: str, rewards: Vector, group_ids: list[int], lengths: Vector, ddof: int = 1, eps: float = 1e-4
) -> torch.Tensor:
    groups = torch.tensor(group_ids, dtype=torch.int64)
    return ADVANTAGES[name](tensor(rewards), groups, num_tokens=tensor(lengths), ddof=ddof, eps=eps)


def expected(name: str, rewards: Vector, group_ids: list[int], lengths: Vector, ddof: int, eps: float) -> Vector:
    return {
        "group": lambda: objectives.group_advantage(rewards, group_ids, ddof, eps),
        "centered": lambda: objectives.centered_advantage(rewards, group_ids),
        "batch_std": lambda: switches.batch_std_advantage(rewards, group_ids, ddof, eps),
        "rloo": lambda: switches.rloo_advantage(rewards, group_ids),
        "reinforce_pp": lambda: switches.reinforce_pp_advantage(rewards, lengths, ddof, eps),
        "reinforce_pp_baseline": lambda: switches.reinforce_pp_baseline_advantage(
            rewards, group_ids, lengths, ddof, eps
        ),
        "none": lambda: switches.raw_advantage(rewards),
    }[name]()


def test_registry_holds_the_tested_rules() -> None:
    assert set(ADVANTAGES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("ddof", "eps"), [(0, 1e-6), (1, 1e-4), (1, 0.5)])
def test_advantage_equals_reference(name: str, seed: int, ddof: int, eps: float) -> None:
    case = reward_case(seed)
    lengths = lengths_of(seed, len(case.rewards))
    actual = computed(name, case.rewards, case.group_ids, lengths, ddof, eps)
    close(actual, expected(name, case.rewards, case.group_ids, lengths, ddof, eps))


@pytest.mark.parametrize("name", NAMES)
def test_advantage_does_not_depend_on_the_order_of_the_rows(name: str) -> None:
    case = reward_case(7)
    lengths = lengths_of(7, len(case.rewards))
    order = list(range(len(lengths)))
    random.Random(3).shuffle(order)
    whole = computed(name, case.rewards, case.group_ids, lengths)
    shuffled = computed(
        name, [case.rewards[i] for i in order], [case.group_ids[i] for i in order], [lengths[i] for i in order]
    )
    close(shuffled, whole[order].tolist())


def test_advantages_by_hand() -> None:
    # Group 7: 1, 0, unscorable; group 2: 3, 3 (no signal); group 5: 4 alone. Lengths 3, 1, 9, 2, 2, 5.
    rewards, groups = [1.0, 0.0, math.nan, 3.0, 3.0, 4.0], [7, 7, 7, 2, 2, 5]
    lengths = [3.0, 1.0, 9.0, 2.0, 2.0, 5.0]
    close(computed("none", rewards, groups, lengths), [1.0, 0.0, 0.0, 3.0, 3.0, 4.0])
    close(computed("rloo", rewards, groups, lengths), [1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    # The scorable rewards 1, 0, 3, 3, 4 have mean 2.2 and squares 1.44 + 4.84 + 0.64 + 0.64 + 3.24 = 10.8.
    std = math.sqrt(10.8 / 4)
    close(computed("batch_std", rewards, groups, lengths, eps=0.0), [0.5 / std, -0.5 / std, 0, 0, 0, 0])
    # Per token: 1 x 3, 0 x 1, 3 x 4, 4 x 5 over 13 tokens: mean 35 / 13, mean of squares 119 / 13.
    centre = 35 / 13
    deviation = math.sqrt((119 - 13 * centre**2) / 12)
    whitened = [(reward - centre) / (deviation + 0.25) for reward in (1.0, 0.0, 3.0, 3.0, 4.0)]
    close(computed("reinforce_pp", rewards, groups, lengths, eps=0.25), [*whitened[:2], 0.0, *whitened[2:]])
    # Only group 7 has signal: 0.5 x 3 and -0.5 x 1, mean 0.25, squares 3/16 + 9/16 = 3/4 over 4 - 1.
    close(computed("reinforce_pp_baseline", rewards, groups, lengths, eps=0.0), [0.5, -1.5, 0.0, 0.0, 0.0, 0.0])


def test_baseline_member_at_the_mean_of_its_group_is_whitened_with_the_others() -> None:
    # Centred -1, 0, 1 with 1, 1, 2 tokens: mean 1/4, squares 25/16 + 1/16 + 2 x 9/16 = 44/16 over 4 (ddof 0).
    actual = computed("reinforce_pp_baseline", [0.0, 1.0, 2.0], [4, 4, 4], [1.0, 1.0, 2.0], ddof=0, eps=0.0)
    deviation = math.sqrt(11) / 4
    close(actual, [-1.25 / deviation, -0.25 / deviation, 0.75 / deviation])


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_is_the_scaled_centred_reward(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {3: 2, 8: 4, 1: 7}
    groups = [group for group, size in sizes.items() for _ in range(size)]
    rng.shuffle(groups)
    rewards = [rng.uniform(-2, 2) for _ in groups]
    lengths = [1.0] * len(groups)
    centered = computed("centered", rewards, groups, lengths).tolist()
    scaled = [sizes[group] / (sizes[group] - 1) * value for group, value in zip(groups, centered, strict=True)]
    close(computed("rloo", rewards, groups, lengths), scaled)


@pytest.mark.parametrize("name", ["group", "centered", "batch_std", "rloo", *WHITENED])
@pytest.mark.parametrize("value", [0.1, 1.0, -0.7])
def test_equal_rewards_have_no_advantage_at_all(name: str, value: float) -> None:
    # 0.1 seven times: the rounded mean differs from 0.1, which a tiny standard deviation would blow up.
    rewards, groups = [value] * 3 + [math.nan] + [value] * 4, [6, 6, 2, 2, 2, 6, 9, 9]
    actual = computed(name, rewards, groups, [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], eps=1e-12)
    assert actual.tolist() == [0.0] * 8


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rewards", [[math.nan, math.nan, math.nan], [math.nan, 0.0, math.nan]])
def test_batch_without_signal_is_finite_zero(name: str, rewards: Vector) -> None:
    assert computed(name, rewards, [1, 1, 5], [2.0, 3.0, 1.0], eps=0.0).tolist() == [0.0] * 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WHITENED)
def test_whitened_advantage_has_mean_zero_and_variance_one_over_the_tokens(name: str, seed: int) -> None:
    case = reward_case(seed)
    lengths = lengths_of(seed, len(case.rewards))
    actual = computed(name, case.rewards, case.group_ids, lengths, ddof=0, eps=0.0)
    weights = tensor(lengths) * (actual != 0)
    assert abs(float((weights * actual).sum() / weights.sum())) < 1e-12
    close((weights * actual.square()).sum() / weights.sum(), 1.0)
    # Not the mean over the rows: lengths matter.
    assert abs(float(actual[actual != 0].mean())) > 1e-3


@pytest.mark.parametrize("name", ["group", "centered", "batch_std", "rloo", "none"])
def test_only_the_whitened_rules_depend_on_the_lengths(name: str) -> None:
    case = reward_case(2)
    ones, others = [1.0] * len(case.rewards), lengths_of(2, len(case.rewards))
    assert torch.equal(
        computed(name, case.rewards, case.group_ids, ones), computed(name, case.rewards, case.group_ids, others)
    )


def step_of(mask: torch.Tensor, max_completion_length: int) -> Denominator:
    return Denominator(
        num_loss_tokens=float(mask.sum()),
        num_sequences=float(mask.any(dim=1).sum()),
        num_rows=float(mask.shape[0]),
        max_completion_length=max_completion_length,
    )


@pytest.mark.parametrize(
    ("rule", "value"), [("token_mean", 37.0), ("sequence_mean", 25.0), ("constant", 18.5), ("token_sum", 185.0)]
)
def test_aggregations_of_lengths_one_and_nine(rule: str, value: float) -> None:
    values = tensor([[10.0] + [math.nan] * 8, [40.0] * 9])
    mask = torch.tensor([[True] + [False] * 8, [True] * 9])
    close(aggregate(values, mask, step_of(mask, 10), rule), value)


def test_token_sum_value_and_gradient_with_a_masked_row() -> None:
    # Kept 1 + 2 + 4 = 7 over the four rows, the row without a loss token among them.
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, False], [False, False, False]])
    values = tensor([[1.0, 2.0, math.nan], [math.inf] * 3, [math.nan, 4.0, -math.inf], [math.nan] * 3], True)
    actual = aggregate(values, mask, step_of(mask, 11), "token_sum")
    close(actual, 7 / 4)
    actual.backward()
    close_gradient(values.grad, [0.25, 0.25, 0, 0, 0, 0, 0, 0.25, 0, 0, 0, 0])


def test_token_sum_uses_the_rows_of_the_step() -> None:
    step = Denominator(num_loss_tokens=24.0, num_sequences=9.0, num_rows=5.0, max_completion_length=8)
    mask = torch.tensor([[True, True], [True, False]])
    close(aggregate(tensor([[1.0, 2.0], [3.0, 9.0]]), mask, step, "token_sum"), 6 / 5)
