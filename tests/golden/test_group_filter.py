"""The filter of groups against values worked out by hand."""

import math
from typing import get_args

import pytest
import torch

from rlvr.config.presets import GroupFilter
from rlvr.objectives.group_filter import GROUP_FILTERS, StdFilter, build_group_filter, kept_members


def test_std_filter_averages_from_step_6_and_filters_from_step_11() -> None:
    state = StdFilter()
    for _ in range(5):
        assert state.keep([9.0, 0.0]) == [True, True]
    assert state.ema is None
    assert state.keep([0.4, 0.2]) == [True, True]
    assert state.ema == pytest.approx(0.3)
    for _ in range(4):
        assert state.keep([0.3, math.nan]) == [True, True]
    assert state.step == 10
    assert state.ema == pytest.approx(0.3)
    assert state.keep([0.16, 0.14, math.nan, 1.2]) == [True, False, False, True]
    assert state.ema == pytest.approx(0.99 * 0.3 + 0.01 * 0.5)


def test_std_filter_goes_on_where_it_stopped() -> None:
    whole, first = StdFilter(), StdFilter()
    steps = [[0.1 * step, 0.1] for step in range(16)]
    expected = [whole.keep(deviations) for deviations in steps]
    assert expected[10:] == [[True, False]] * 6
    got = [first.keep(deviations) for deviations in steps[:8]]
    second = StdFilter()
    second.load_state_dict(first.state_dict())
    assert [*got, *(second.keep(deviations) for deviations in steps[8:])] == expected


def test_a_group_at_the_threshold_is_kept_and_the_step_itself_does_not_count() -> None:
    state = StdFilter(step=10, ema=0.25)
    assert state.keep([0.125, 0.12499, 100.0]) == [True, False, True]
    assert state.ema == pytest.approx(0.99 * 0.25 + 0.01 * (0.125 + 0.12499 + 100.0) / 3)


def test_steps_without_any_verdict_leave_the_average_alone() -> None:
    state = StdFilter(step=5)
    assert state.keep([math.nan, math.nan]) == [True, True]
    assert state.ema is None
    state = StdFilter(step=20, ema=0.5)
    assert state.keep([math.nan]) == [False]
    assert (state.step, state.ema) == (21, 0.5)


def test_members_follow_their_groups_wherever_they_are() -> None:
    # Group 3: 0, 1 (deviation 0.5). Group 8: 2, 2.2, none (0.1). Group 5: no verdict. Group 1: one verdict (0).
    rewards = torch.tensor([0.0, 2.0, math.nan, 1.0, 2.2, math.nan, math.nan, 7.0])
    group_ids = torch.tensor([3, 8, 5, 3, 8, 5, 8, 1])
    state = StdFilter(step=10, ema=0.4)
    kept, dropped = kept_members(state, rewards, group_ids)
    assert kept.tolist() == [True, False, False, True, False, False, False, False]
    assert dropped == 0.75
    assert state.ema == pytest.approx(0.99 * 0.4 + 0.01 * (0.5 + 0.1 + 0.0) / 3, rel=1e-6)


def test_registry_has_every_name_of_a_recipe() -> None:
    assert set(GROUP_FILTERS) == set(get_args(GroupFilter))
    assert build_group_filter("none") is None
    first, second = build_group_filter("std_ema"), build_group_filter("std_ema")
    assert first == second == StdFilter()
    assert first is not second
