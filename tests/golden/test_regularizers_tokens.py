"""The entropy bonus and the three masks by hand: adapting coefficient, quantile of the step, mastered tokens, draws."""

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from rlvr.objectives.regularizers.base import linear_quantile
from tests.golden.cases import close, tensor
from tests.golden.regularizer_cases import (
    StepCase,
    apply,
    hand_case,
    on_ranks,
    on_two_ranks,
    one_of,
    rows_of,
    step_case,
    step_tokens_of,
)
from tests.reference import regularizers as reference
from tests.reference.objectives import Mask

# Entropy.

ADAPTIVE = {"coef": 0.01, "target": 0.5, "coef_delta": 0.004, "coef_min": 0.003, "coef_max": 0.017}
MEASURED = [0.2, 0.5, 0.1, 0.9, 0.6, 0.51, 0.7, 0.9, 0.3, 0.5000001, 0.5]


def test_entropy_bonus_by_hand() -> None:
    # -0.5 x (1 + 3) / 2; every token has the same weight in rows of different length.
    case = hand_case(
        logprobs=[[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]],
        advantages=[[1.0] * 3, [-1.0] * 3],
        mask=[[True, True, True], [False, True, False]],
        live_entropy=[[1.0, 2.0, 3.0], [math.nan, 6.0, math.nan]],
    )
    for rule in ("token_mean", "sequence_mean", "constant", "token_sum"):
        outcome = apply(one_of({"entropy": {"coef": 0.5}}), case, rule=rule)
        assert outcome.loss == pytest.approx(-1.5)
        close(outcome.leaves.gradient("entropy"), [[-0.125] * 3, [0.0, -0.125, 0.0]])


def test_adapting_coefficient_equals_reference() -> None:
    regularizer, acting = one_of({"entropy": ADAPTIVE}), []
    for step, entropy in enumerate(MEASURED):
        acting.append(regularizer.coef_at(step))
        regularizer.finish({"entropy/mean_token": entropy, "loss/policy": 0.3})
    acting.append(regularizer.coef_at(len(MEASURED)))
    expected = reference.adaptive_coefficients(MEASURED, 0.01, 0.5, 0.004, 0.003, 0.017)
    assert acting == pytest.approx(expected)
    # It reached both bounds.
    assert {0.0, 0.014, 0.017} <= {round(value, 12) for value in acting}


def test_adapting_coefficient_by_hand() -> None:
    regularizer = one_of({"entropy": {"coef": 0.01, "target": 0.5}})  # steps of 0.005 within [0, 1]
    assert regularizer.coef_at(0) == 0.0
    for entropy, expected in ((0.5, 0.015), (0.4, 0.02), (0.6, 0.0), (0.6, 0.0), (0.4, 0.015), (1.0, 0.0)):
        regularizer.finish({"entropy/mean_token": entropy})
        assert regularizer.coef_at(1) == pytest.approx(expected)
    for _ in range(5):
        regularizer.finish({"entropy/mean_token": 0.6})
    regularizer.finish({"entropy/mean_token": 0.0})
    assert regularizer.coef_at(1) == pytest.approx(0.005)  # 0, not below, plus one


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_adapting_coefficient_goes_on_from_a_checkpoint(steps: int) -> None:
    straight, resumed = one_of({"entropy": ADAPTIVE}), one_of({"entropy": ADAPTIVE})
    for entropy in MEASURED[:steps]:
        straight.finish({"entropy/mean_token": entropy})
    state = straight.state_dict()
    assert all(isinstance(value, int | float) for value in state.values())
    resumed.load_state_dict(state)
    for entropy in MEASURED[steps:]:
        assert resumed.coef_at(steps) == straight.coef_at(steps)
        for each in (straight, resumed):
            each.finish({"entropy/mean_token": entropy})
    assert resumed.coef_at(steps) == straight.coef_at(steps)


def test_fixed_coefficient_does_not_adapt() -> None:
    regularizer = one_of({"entropy": {"coef": 0.25}})
    assert regularizer.coef_at(0) == 0.25
    for entropy in (0.0, 9.0):
        regularizer.finish({"entropy/mean_token": entropy})
        assert regularizer.coef_at(1) == 0.25
    again = one_of({"entropy": {"coef": 0.25}})
    again.load_state_dict(regularizer.state_dict())
    assert again.coef_at(2) == 0.25


# Top-entropy mask.


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11])
@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.8, 0.95, 1.0])
def test_quantile_equals_reference(count: int, q: float) -> None:
    values = [math.sin(7.0 * i) for i in range(count)]
    close(linear_quantile(tensor(values), q), reference.quantile(values, q))
    close(linear_quantile(tensor(values), q), torch.quantile(tensor(values), q).item())


@pytest.mark.parametrize(("share", "staying"), [(0.2, 1), (0.4, 2), (0.5, 3), (0.01, 1), (1.0, 6)])
def test_top_entropy_mask_by_hand(share: float, staying: int) -> None:
    # Six tokens of entropy 1 ... 6: the (1 - share)-quantile is 1 + 5 (1 - share), e.g. 5 and 4 for 0.2 and 0.4.
    entropies = [[6.0, 1.0, 3.0], [2.0, 5.0, 4.0]]
    case = hand_case(
        logprobs=[[-1.0] * 3] * 2, advantages=[[1.0] * 3] * 2, entropy=entropies, live_entropy=[[2.0] * 3] * 2
    )
    # At share 0.2 the quantile is 5 up to rounding, so one or two tokens are at it or above.
    outcome = apply(one_of({"top_entropy_mask": {"share": share}}), case)
    assert outcome.stays is not None
    kept = sorted(entropies[b][t] for b, t in reference.places(outcome.stays))
    assert kept == [float(value) for value in range(7 - len(kept), 7)]
    assert staying <= len(kept) <= staying + (share in (0.2, 0.4))


def test_tokens_at_the_quantile_stay() -> None:
    case = hand_case(logprobs=[[-1.0] * 4], advantages=[[1.0] * 4], entropy=[[0.0, 0.0, 0.0, 2.0]])
    assert apply(one_of({"top_entropy_mask": {"share": 0.5}}), case).stays == [[True] * 4]
    # The median of three is the middle one, exactly.
    case = hand_case(logprobs=[[-1.0] * 3], advantages=[[1.0] * 3], entropy=[[0.1, 0.7, 0.3]])
    assert apply(one_of({"top_entropy_mask": {"share": 0.5}}), case).stays == [[False, True, True]]


def test_quantile_is_of_all_ranks_together() -> None:
    # The second rank has all the tokens of high entropy.
    case = hand_case(logprobs=[[-1.0] * 3] * 2, advantages=[[1.0] * 3] * 2, entropy=[[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]])
    one, other = on_two_ranks(lambda: one_of({"top_entropy_mask": {"share": 0.5}}), case, [0])
    assert one.stays == [[False] * 3]
    assert other.stays == [[True] * 3]


# Mastered tokens.

MASTERED = {"mastered_mask": {"min_prob": 0.9, "max_entropy": 0.2}}


@pytest.mark.parametrize(
    ("advantage", "prob", "entropy", "leaves"),
    [
        (1.0, 0.95, 0.1, True),
        (-1.0, 0.95, 0.1, False),
        (0.0, 0.95, 0.1, False),
        (1.0, 0.89, 0.1, False),
        (1.0, 0.95, 0.21, False),
        (1e-6, 0.91, 0.19, True),
    ],
)
def test_mastered_token_by_hand(advantage: float, prob: float, entropy: float, leaves: bool) -> None:
    # The first token's own entropy is twice the completion's mean; the masked one is not in it.
    case = hand_case(
        logprobs=[[math.log(prob), -3.0, 0.0]],
        advantages=[[advantage] * 3],
        mask=[[True, True, False]],
        entropy=[[2 * entropy, 0.0, 50.0]],
    )
    outcome = apply(one_of(MASTERED), case)
    assert outcome.stays == [[not leaves, True, False]]
    assert not outcome.leaves.gradient("logprobs").any()
    assert not outcome.leaves.gradient("entropy").any()


def test_mastered_probability_is_a_lower_bound_and_the_entropy_a_strict_upper_one() -> None:
    settings = {"mastered_mask": {"min_prob": 1.0, "max_entropy": 0.25}}
    case = hand_case(
        logprobs=[[0.0, -1e-6], [0.0, 0.0]], advantages=[[1.0] * 2] * 2, entropy=[[0.25, 0.125], [0.25, 0.25]]
    )
    assert apply(one_of(settings), case).stays == [[False, True], [True, True]]


def test_mastered_tokens_are_judged_by_live_values() -> None:
    # Before the step neither was mastered, nor does the old probability count.
    certain, unsure = [[math.log(0.95)] * 2], [[math.log(0.5)] * 2]
    case = hand_case(
        logprobs=unsure, live=certain, old=unsure, advantages=[[1.0] * 2], entropy=[[2.0] * 2], live_entropy=[[0.1] * 2]
    )
    assert apply(one_of(MASTERED), case).stays == [[False, False]]


def test_mastered_masks_of_rows_are_independent() -> None:
    case = hand_case(
        logprobs=[[math.log(0.95)] * 2] * 3,
        advantages=[[1.0] * 2, [-1.0] * 2, [1.0] * 2],
        entropy=[[0.1, 0.1], [0.1, 0.1], [5.0, 0.1]],
        mask=[[True, True], [True, True], [False, True]],
    )
    assert apply(one_of(MASTERED), case).stays == [[False, False], [True, True], [False, False]]


# Draws of Clip-Cov.


def drawing_case() -> StepCase:
    """Ten rows of three tokens; C = lp x A for centred values, in (1, 5) for twelve of them unless clipped."""
    logprobs, advantages = [], []
    for row in range(10):
        sign = 1.0 if row % 2 else -1.0
        logprobs.append([-5.0 + sign * 1.5, -5.0 + sign * 0.1, -5.0 + sign * 4.0])
        advantages.append([sign] * 3)
    clipped = [[row == 4, False, False] for row in range(10)]
    return hand_case(
        logprobs=logprobs, advantages=advantages, clipped=clipped, row_ids=[3, 41, 5, 900, 7, 8, 12, 77, 30, 2]
    )


def candidates(case: StepCase) -> list[reference.Place]:
    return reference.clip_cov_candidates(case.current.logprobs, case.advantages, case.clipped, case.mask, 1.0, 5.0)


def outcome_of_draw(case: StepCase, share: float = 0.11, step: int = 0, seed: int = 0) -> Mask:
    stays = apply(one_of({"clip_cov": {"share": share}}), case, step=step, seed=seed).stays
    assert stays is not None
    return stays


def drawn(case: StepCase, stays: Mask) -> set[tuple[int, int]]:
    """(row id, position) of the tokens that left."""
    return {(case.row_ids[b], t) for b, t in reference.places(case.mask) if not stays[b][t]}


@pytest.mark.parametrize(("share", "count"), [(0.0002, 1), (0.11, 3), (0.16, 4), (0.9, 19), (1.0, 19)])
def test_as_many_are_drawn_as_the_share_of_all_loss_tokens(share: float, count: int) -> None:
    # 3.3, 4.8 and 27 of 30 tokens; 19 candidates.
    case = drawing_case()
    assert len(candidates(case)) == 19
    assert reference.clip_cov_count(19, 30, share) == count
    left = drawn(case, outcome_of_draw(case, share))
    assert len(left) == count
    assert left <= {(case.row_ids[b], t) for b, t in candidates(case)}


def test_bounds_of_the_covariance_are_strict() -> None:
    # C = 1 for each: lp +-1 around its mean, A +-1 around 0.
    case = hand_case(logprobs=[[-1.0, -3.0]], advantages=[[1.0, -1.0]])
    for low, high, staying in ((1.0, 5.0, True), (0.5, 1.0, True), (0.999, 1.001, False)):
        settings = {"clip_cov": {"share": 1.0, "low": low, "high": high}}
        assert apply(one_of(settings), case).stays == [[staying] * 2]


def test_draw_is_the_same_for_any_split_order_and_padding() -> None:
    case = drawing_case()
    expected = drawn(case, outcome_of_draw(case, step=7, seed=3))
    order = [7, 2, 9, 0, 1, 8, 3, 6, 5, 4]
    moved = replace(rows_of(case, order), microbatch_ids=[0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    assert drawn(moved, outcome_of_draw(moved, step=7, seed=3)) == expected
    wide = {
        name: [[*row, filler] for row in getattr(case, name)]
        for name, filler in (("mask", False), ("advantages", math.nan), ("old", math.nan), ("clipped", True))
    }
    wide |= {"kept": [[True] * 4] * 10, "log_kept_mass": [[0.0] * 4] * 10, "proxy": [[[0.0]] * 4] * 10}
    values = [[*row, math.nan] for row in case.live.logprobs]
    live = replace(case.live, logprobs=values, entropy=values, nucleus=values, support=[[[0.0]] * 4] * 10)
    padded = replace(case, **wide, current=live, live=live)
    assert drawn(padded, outcome_of_draw(padded, step=7, seed=3)) == expected


@pytest.mark.parametrize("first", [[0, 1, 2, 3, 4], [9], [8, 3, 0]], ids=str)
def test_ranks_draw_together(first: list[int]) -> None:
    case = drawing_case()
    for step in range(5):
        expected = drawn(case, outcome_of_draw(case, step=step))
        cases = [rows_of(case, first), rows_of(case, [row for row in range(10) if row not in first])]

        def left(own: StepCase, gather: object, step: int = step) -> set[tuple[int, int]]:
            outcome = apply(one_of({"clip_cov": {"share": 0.11}}), own, step=step, seed=0, gather=gather)
            assert outcome.stays is not None
            return drawn(own, outcome.stays)

        assert set().union(*on_ranks(cases, left)) == expected


def test_draw_depends_on_row_ids() -> None:
    case = drawing_case()
    other = replace(case, row_ids=[row + 1000 for row in case.row_ids])
    places = [{(case.row_ids.index(r), t) for r, t in drawn(case, outcome_of_draw(case, step=s))} for s in range(20)]
    others = [{(other.row_ids.index(r), t) for r, t in drawn(other, outcome_of_draw(other, step=s))} for s in range(20)]
    assert sum(a == b for a, b in zip(places, others, strict=True)) <= 2


def test_draw_leaves_the_generators_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    case = drawing_case()
    first = outcome_of_draw(case)
    assert torch.equal(torch.rand(3), expected)
    assert outcome_of_draw(case) == first


DRAWS = 1500


@pytest.mark.parametrize("over", ["steps", "seeds"])
def test_every_candidate_and_pair_has_an_equal_chance(over: str) -> None:
    case, regularizer = drawing_case(), one_of({"clip_cov": {"share": 0.11}})
    chosen = [(case.row_ids[b], t) for b, t in candidates(case)]
    singles: Counter[tuple[int, int]] = Counter()
    pairs: Counter[frozenset[tuple[int, int]]] = Counter()
    repeats, before = 0, None
    for number in range(DRAWS):
        step, seed = (number, 1) if over == "steps" else (1, number)
        tokens = step_tokens_of(case, step=step, seed=seed)
        (mask,) = regularizer.prepare(tokens).tokens.values()
        left = drawn(case, mask.tolist())
        if len(left) != 3:  # the prepared mask may say who leaves instead of who stays
            left = drawn(case, (~mask).tolist())
        assert len(left) == 3
        singles.update(left)
        pairs.update(frozenset(pair) for pair in combinations(sorted(left), 2))
        repeats, before = repeats + (left == before), left
    assert set(singles) == set(chosen)
    share, pair_share = 3 / 19, 3 * 2 / (19 * 18)
    # Five standard deviations.
    for count in singles.values():
        assert abs(count - share * DRAWS) < 5 * math.sqrt(DRAWS * share * (1 - share))
    for pair in combinations(sorted(chosen), 2):
        assert abs(pairs[frozenset(pair)] - pair_share * DRAWS) < 5 * math.sqrt(DRAWS * pair_share) + 1
    # Two draws in a row are equal once in 969.
    assert repeats <= 10


# KL-Cov.


@pytest.mark.parametrize(("share", "count"), [(0.0002, 1), (0.49, 1), (0.7, 2), (0.76, 3), (1.0, 4)])
def test_kl_cov_by_hand(share: float, count: int) -> None:
    # lp - mean -1.5, -0.5, 0.5, 1.5 and A of mean 0: C = 4.5, -0.4, -0.6, 5.1.
    case = hand_case(
        logprobs=[[-4.0, -3.0], [-2.0, -1.0]],
        advantages=[[-3.0, 0.8], [-1.2, 3.4]],
        live=[[-4.1, -3.0], [-2.0, -0.7]],
        old=[[-4.0, -2.5], [-2.5, -1.0]],
    )
    order = [(1, 1), (0, 0), (0, 1), (1, 0)]
    outcome = apply(one_of({"kl_cov": {"coef": 2.0, "share": share}}), case, rule="token_sum")
    distance = {(0, 0): -0.1, (1, 1): 0.3, (0, 1): -0.5, (1, 0): 0.5}
    # Two rows: each token weighs 2 / 2.
    assert outcome.loss == pytest.approx(sum(abs(distance[place]) for place in order[:count]))
    slopes = [[0.0, 0.0], [0.0, 0.0]]
    for b, t in order[:count]:
        slopes[b][t] = math.copysign(1.0, distance[b, t])
    close(outcome.leaves.gradient("logprobs"), slopes)


def test_kl_cov_takes_its_number_of_tokens_when_all_covariances_are_zero() -> None:
    # The smallest case of equal advantages: one token of the four is to be held, not all.
    case = hand_case(
        logprobs=[[-4.0, -3.0], [-2.0, -1.0]], advantages=[[0.0, 0.0]] * 2, live=[[-3.0, -2.0], [-1.0, -0.5]]
    )
    outcome = apply(one_of({"kl_cov": {"coef": 1.0, "share": 0.25}}), case)
    assert outcome.leaves.gradient("logprobs").count_nonzero() == 1


def test_kl_cov_at_the_old_policy_costs_nothing() -> None:
    case = step_case(1, moved=False)
    outcome = apply(one_of({"kl_cov": {"coef": 1.0, "share": 1.0}}), replace(case, old=case.live.logprobs))
    assert outcome.loss == 0.0
    assert torch.isfinite(outcome.leaves.gradient("logprobs")).all()
