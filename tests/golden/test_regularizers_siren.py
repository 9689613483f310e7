"""SIREN by hand: nucleus entropies, peaks, the anchor, and the two sides of the penalty."""

import math
from dataclasses import replace

import pytest
import torch

from rlvr.objectives.regularizers.base import Regularizer
from rlvr.ops.token_stats import StatsRequest, token_stats
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
from tests.reference.objectives import Matrix

PROBS = [0.5, 0.4, 0.1]


def siren(coef: float = 1.0, peak_quantile: float = 0.5) -> Regularizer:
    return one_of({"siren": {"coef": coef, "peak_quantile": peak_quantile}})


def entropies(nucleus: Matrix, **changes: object) -> StepCase:
    ones = [[1.0] * len(row) for row in nucleus]
    return hand_case(logprobs=[[-value for value in row] for row in ones], advantages=ones, nucleus=nucleus, **changes)


def started(anchor_at: StepCase, coef: float = 1.0, peak_quantile: float = 0.5) -> Regularizer:
    regularizer = siren(coef, peak_quantile)
    regularizer.start(step_tokens_of(anchor_at))
    return regularizer


@pytest.mark.parametrize(("rule", "expected"), [("standard", 0.687), ("paper_code", 0.0)])
def test_nucleus_entropy_by_hand(rule: str, expected: float) -> None:
    hidden = tensor([[math.log(p) for p in PROBS]])
    needs = one_of({"siren": {"nucleus_p": 0.8, "nucleus": rule}}).needs
    for request in (StatsRequest(nucleus_p=0.8, nucleus_rule=rule), needs.step, needs.live):
        assert request is not None
        head = torch.eye(3, dtype=torch.float64)
        stats = token_stats(hidden, head, None, torch.tensor([0]), temperature=1.0, tile_tokens=1, request=request)
        assert stats.nucleus_entropy is not None
        assert stats.nucleus_entropy.item() == pytest.approx(expected, abs=1e-3)
        close(stats.nucleus_entropy, [reference.nucleus_entropy(PROBS, 0.8, rule)])


# Row 0: median 2, peak 4 (and 3 with a quantile of 0.4: 1.8 < 2). Row 1: median 1, peak 9 of two. Row 2 has no peak.
HAND = [[1.0, 4.0, 2.0], [0.5, 1.5, 7.0], [3.0, 3.0, 3.0]]
HAND_MASK = [[True, True, True], [True, True, False], [True, True, True]]


def test_penalty_by_hand() -> None:
    # Peaks 4 and 1.5: their mean is 2.75, the row without a peak does not count. At the anchor 2 the gap is 0.75.
    case = entropies(HAND, mask=HAND_MASK, microbatch_ids=[0, 1, 2])
    regularizer = started(entropies([[1.0, 2.0]]), coef=0.4)
    outcome = apply(regularizer, case)
    assert outcome.loss == pytest.approx(0.4 * 0.75**2)
    slope = 0.4 * 2 * 0.75 / 2
    close(outcome.leaves.gradient("nucleus"), [[0.0, slope, 0.0], [0.0, slope, 0.0], [0.0] * 3])


def test_several_peaks_share_the_weight_of_their_row() -> None:
    # Quantile 0.5 of (1, 2, 3, 4) is 2.5: peaks 3 and 4, mean 3.5. Row 1: quantile 1.5, peak 2. Mean 2.75, anchor 1.
    case = entropies([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 9.0, 9.0]], mask=[[True] * 4, [True, True, False, False]])
    outcome = apply(started(entropies([[0.0, 1.0]])), case)
    assert outcome.loss == pytest.approx(1.75**2)
    slope = 2 * 1.75 / 2
    close(outcome.leaves.gradient("nucleus"), [[0.0, 0.0, slope / 2, slope / 2], [0.0, slope, 0.0, 0.0]])


@pytest.mark.parametrize(("quantile", "peaks"), [(0.0, [1, 2, 3, 4]), (0.25, [2, 3, 4]), (0.3, [2, 3, 4]), (0.8, [4])])
def test_peaks_are_above_the_quantile_of_their_row(quantile: float, peaks: list[int]) -> None:
    # At quantile 0 and 0.25 the bound is a token's own entropy, which is not above it.
    case = entropies([[0.0, 1.0, 2.0, 3.0, 4.0]])
    outcome = apply(started(entropies([[0.0, 1.0]]), peak_quantile=quantile), case)
    assert outcome.leaves.gradient("nucleus")[0].nonzero().flatten().tolist() == peaks


@pytest.mark.parametrize("shift", [-0.4, -0.01, 0.0, 0.01, 0.4])
def test_loss_rises_on_both_sides_of_the_anchor(shift: float) -> None:
    first = entropies(HAND, mask=HAND_MASK)
    moved = entropies([[value + shift for value in row] for row in HAND], mask=HAND_MASK)
    outcome = apply(started(first, coef=3.0), moved)
    assert outcome.loss == pytest.approx(3.0 * shift**2)
    gradient = outcome.leaves.gradient("nucleus").sum().item()
    assert gradient == pytest.approx(6.0 * shift)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_first_rollouts_cost_exactly_nothing(seed: int) -> None:
    case = step_case(seed, moved=False)
    outcome = apply(started(case), case)
    assert outcome.loss == 0.0
    assert not outcome.leaves.gradient("nucleus").any()


def test_anchor_is_a_checkpoints() -> None:
    first, case = step_case(1), step_case(2, moved=False)
    regularizer, resumed = started(first), siren()
    resumed.load_state_dict(regularizer.state_dict())
    peaks = reference.siren_peaks(first.current.nucleus, first.mask, 0.5)
    (anchor,) = regularizer.state_dict().values()
    assert anchor == pytest.approx(reference.peak_mean(first.current.nucleus, peaks))
    assert apply(resumed, case).loss == apply(regularizer, case).loss > 0.0
    # A step does not move it.
    regularizer.finish({"entropy/mean_token": 0.4})
    assert regularizer.state_dict() == resumed.state_dict()


def test_anchor_is_of_all_ranks() -> None:
    case, first = step_case(1), [3, 4, 5]
    cases = [rows_of(case, first), rows_of(case, [row for row in range(9) if row not in first])]

    def anchor(own: StepCase, gather: object) -> float:
        regularizer = siren()
        regularizer.start(step_tokens_of(own, gather=gather))
        (value,) = regularizer.state_dict().values()
        return value

    (whole,) = started(case).state_dict().values()
    assert on_ranks(cases, anchor) == pytest.approx([whole, whole])


@pytest.mark.parametrize("nucleus", [[[2.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_step_without_a_peak_costs_nothing(nucleus: Matrix) -> None:
    outcome = apply(started(entropies([[1.0, 5.0]])), entropies(nucleus, microbatch_ids=[0, 1]))
    assert outcome.loss == 0.0
    assert not outcome.leaves.gradient("nucleus").any()


def test_completion_of_one_token_has_no_peak() -> None:
    case = entropies([[9.0, 1.0], [1.0, 3.0]], mask=[[True, False], [True, True]])
    assert apply(started(entropies([[0.0, 1.0]])), case).loss == pytest.approx(4.0)


def test_rank_without_a_peak_adds_nothing() -> None:
    case = entropies([[2.0, 2.0], [1.0, 3.0], [0.0, 5.0]])
    one, other = on_two_ranks(lambda: started(entropies([[0.0, 1.0]])), case, [0])
    assert one.loss == 0.0
    assert not one.leaves.gradient("nucleus").any()
    assert other.loss == pytest.approx(9.0)


def test_peaks_are_those_before_the_step() -> None:
    # By now another token is the highest; the gradient still goes to the peak of before.
    case = entropies([[1.0, 2.0]], live_nucleus=[[3.0, 2.0]])
    outcome = apply(started(entropies([[0.0, 1.0]])), case)
    gradient = outcome.leaves.gradient("nucleus")
    assert gradient[0, 0] == 0.0
    assert gradient[0, 1] != 0.0


@pytest.mark.parametrize("sizes", [[4, 1, 4], [9], [1] * 9], ids=str)
def test_share_of_every_micro_batch_adds_up(sizes: list[int]) -> None:
    # To the accuracy of float64, whatever the number of completions with a peak in each.
    case = step_case(2, moved=False)
    case = replace(case, microbatch_ids=[number for number, size in enumerate(sizes) for _ in range(size)])
    outcome = apply(started(step_case(1)), case)
    peaks = reference.siren_peaks(case.current.nucleus, case.mask, 0.5)
    first = step_case(1).current.nucleus
    anchor = reference.peak_mean(first, reference.siren_peaks(first, case.mask, 0.5))
    assert anchor is not None
    assert outcome.loss == pytest.approx(reference.siren_loss(case.live.nucleus, peaks, anchor, 1.0), rel=1e-9)
