"""Seeded inputs for the golden and law tests, as lists of floats, and the step from lists to float64 tensors."""

import math
import random
from dataclasses import dataclass

import torch

from tests.reference.objectives import Mask, Matrix, Vector

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
ROWS, COLUMNS = 5, 4
MAX_COMPLETION_LENGTH = 7
RULES = ("token_mean", "sequence_mean", "constant")

# Distance kept from both clip bounds, so that a finite difference never steps over a kink.
MARGIN = 0.02


@dataclass(frozen=True)
class PolicyCase:
    """One batch: [ROWS, COLUMNS] each; `mask` has ragged rows, a row with a hole and a row without a loss token."""

    logprobs: Matrix
    old_logprobs: Matrix
    ref_logprobs: Matrix
    advantages: Matrix
    mask: Mask


def policy_case(seed: int) -> PolicyCase:
    """Every (ratio below / between / above the clip bounds) x (sign of the advantage) occurs on a loss token."""
    rng = random.Random(seed)
    mask = [
        [True, True, True, True],
        [True, False, True, True],
        [True, True, False, False],
        [False, False, False, False],
        [True, False, False, False],
    ]
    low_bound, high_bound = 1 - CLIP_LOW, 1 + CLIP_HIGH
    ranges = [(0.4, low_bound - MARGIN), (low_bound + MARGIN, high_bound - MARGIN), (high_bound + MARGIN, 2.0)]
    kinds = [(low_high, sign) for low_high in ranges for sign in (-1.0, 1.0)]
    rng.shuffle(kinds)
    logprobs, old_logprobs, ref_logprobs, advantages = [], [], [], []
    loss_tokens = 0
    for b in range(ROWS):
        old_row, row, ref_row, advantage_row = [], [], [], []
        for t in range(COLUMNS):
            # Loss tokens walk through all six kinds before one repeats; the others take any.
            (low, high), sign = kinds[loss_tokens % len(kinds)] if mask[b][t] else rng.choice(kinds)
            loss_tokens += mask[b][t]
            old_row.append(-rng.uniform(0.1, 4.0))
            row.append(old_row[t] + math.log(rng.uniform(low, high)))
            ref_row.append(row[t] + rng.uniform(-1.2, 1.2))
            advantage_row.append(sign * rng.uniform(0.3, 2.0))
        logprobs.append(row)
        old_logprobs.append(old_row)
        ref_logprobs.append(ref_row)
        advantages.append(advantage_row)
    return PolicyCase(logprobs, old_logprobs, ref_logprobs, advantages, mask)


@dataclass(frozen=True)
class RewardCase:
    """Rewards of one batch (NaN = unscorable) and the group of each."""

    rewards: Vector
    group_ids: list[int]


def reward_case(seed: int) -> RewardCase:
    """Groups of 1, 2, 3, 5 and 8 members, shuffled together; the 5 have an unscorable one, a pair has only one left."""
    rng = random.Random(seed)
    sizes = {17: 1, 4: 2, 9: 3, 2: 5, 30: 8, 11: 2, 6: 3}
    members = [(group, rng.uniform(-1.0, 3.0)) for group, size in sizes.items() for _ in range(size)]
    seen: set[int] = set()
    for index, (group, _) in enumerate(members):
        if group in (2, 11) and group not in seen:
            seen.add(group)
            members[index] = (group, math.nan)
        if group == 6:
            members[index] = (group, 0.1)
    rng.shuffle(members)
    return RewardCase([reward for _, reward in members], [group for group, _ in members])


@dataclass(frozen=True)
class HeadCase:
    """Hidden states [N, H], an output head [V, H] with bias [V], and the targets [N]."""

    hidden: Matrix
    weight: Matrix
    bias: Vector
    targets: list[int]


def head_case(seed: int, tokens: int = 5, width: int = 6, vocabulary: int = 11) -> HeadCase:
    """Normal entries, with targets that include the first and the last token of the vocabulary."""
    rng = random.Random(seed)
    return HeadCase(
        hidden=[[rng.gauss(0, 1) for _ in range(width)] for _ in range(tokens)],
        weight=[[rng.gauss(0, 0.7) for _ in range(width)] for _ in range(vocabulary)],
        bias=[rng.gauss(0, 0.5) for _ in range(vocabulary)],
        targets=[0, vocabulary - 1, *(rng.randrange(vocabulary) for _ in range(tokens - 2))],
    )


def tensor(values: Matrix | Vector, requires_grad: bool = False) -> torch.Tensor:
    """float64 tensor of nested lists."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=requires_grad)


def close(actual: torch.Tensor, expected: Matrix | Vector | float, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """Asserts elementwise nearness, equal shapes and float64."""
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def close_gradient(actual: torch.Tensor | None, expected: Vector) -> None:
    """Asserts that a tensor's gradient is the (flat) finite-difference one."""
    assert actual is not None, "no gradient reached the tensor"
    close(actual.flatten(), expected, rtol=1e-6, atol=1e-9)
