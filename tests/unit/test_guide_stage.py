"""Which prompts each guidance rule helps, with what, how often, and when the new completions count."""

import json
from collections import Counter
from typing import Any

import pytest

from rlvr.guidance.groups import in_need
from rlvr.guidance.start import Start
from rlvr.sampling.groups import groups_of
from tests.unit.guide_script import Script, changed_rows, hinted, question, rows_of, stage, step_of

GROUP = 4
RULES: list[dict[str, Any]] = [
    {"rule": "nurl"},
    {"rule": "nurl", "plain_rollout": "resample"},
    {"rule": "guide"},
    {"rule": "sage"},
    {"rule": "sage", "schedule": "light"},
]
LEVELS = {prompt_id: ("one", "two", "three") for prompt_id in range(20)}


# ---- which prompts are in need --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_only_groups_without_any_success_are_helped(settings: dict[str, Any]) -> None:
    script = Script({hinted(each): "0101" for each in range(9)})
    before = step_of({0: "1111", 1: "0001", 2: "0000", 3: "1xxx", 4: "xxxx", 5: "00xx"}, interleaved=True)
    guided = stage(script, **settings)(before, 0)
    assert {text.split("\n")[0] for text in script.asked} == {question(2), question(5)}
    assert {before.rollouts.group_ids[row] for row in changed_rows(before, guided)} == {2, 5}
    assert guided.metrics["guidance/needed_frac"] == pytest.approx(2 / 6)
    assert guided.metrics["guidance/helped_frac"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("settings", RULES, ids=str)
def test_nothing_is_sampled_where_nothing_is_in_need(settings: dict[str, Any]) -> None:
    script, before = Script(), step_of({0: "1111", 1: "0001", 2: "xxxx"})
    guided = stage(script, **settings)(before, 0)
    assert script.asked == []
    assert script.judged == []
    assert changed_rows(before, guided) == []


def test_pass_rate_is_of_the_completions_with_a_verdict_and_at_most_the_threshold() -> None:
    groups = groups_of(step_of({0: "0001", 1: "0011", 2: "001x", 3: "x0x1", 4: "xxxx", 5: "0000"}))
    assert [group.pass_rate for group in groups] == [0.25, 0.5, pytest.approx(1 / 3), 0.5, None, 0.0]
    needy = {threshold: [group.prompt_id for group in in_need(groups, threshold)] for threshold in (0.0, 0.25, 0.4)}
    assert needy == {0.0: [5], 0.25: [0, 5], 0.4: [0, 2, 5]}


def test_threshold_reaches_the_stage() -> None:
    script = Script({hinted(0): "101"})
    before = step_of({0: "0001", 1: "0011"})
    guided = stage(script, threshold=0.25)(before, 0)
    assert script.asked == [hinted(0)] * 3
    outcomes = guided.scored.verdicts.outcomes
    assert outcomes[4:] == [0.0, 0.0, 1.0, 1.0]
    assert sorted(outcomes[:4], key=str) == [0.0, 0.0, 1.0, 1.0]  # 1, 0, 1 with the hint and a failure without


# ---- NuRL -----------------------------------------------------------------------------------------------------------


def test_nurl_samples_all_but_one_with_the_hint_and_keeps_a_failure() -> None:
    script, before = Script({hinted(1): "1"}), step_of({0: "1100", 1: "0000"})
    guided = stage(script)(before, 0)
    assert script.asked == [hinted(1)] * (GROUP - 1)
    assert len(changed_rows(before, guided)) == GROUP - 1
    assert sorted(guided.scored.verdicts.outcomes[4:], key=str) == [0.0, 1.0, 1.0, 1.0]


def test_nurl_resamples_one_without_the_hint() -> None:
    script, before = Script({hinted(1): "1", question(1): "0"}), step_of({0: "1100", 1: "0000"})
    guided = stage(script, plain_rollout="resample")(before, 0)
    assert Counter(script.asked) == {hinted(1): GROUP - 1, question(1): 1}
    assert changed_rows(before, guided) == rows_of(before, 1)
    assert guided.metrics["guidance/extra_rollouts"] == GROUP


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_kept_completion_is_a_failure(threshold: float) -> None:
    """Neither a success, which a threshold above 0 allows, nor one without a verdict."""
    for seed in range(20):
        group = "x0xx" if threshold == 0 else "x01x"
        before = step_of({0: group})
        guided = stage(Script({hinted(0): "1"}), threshold=threshold, seed=seed)(before, 0)
        assert changed_rows(before, guided) == [0, 2, 3]


def test_the_kept_completion_is_drawn_anew_for_each_prompt_and_step() -> None:
    before = step_of({prompt_id: "0000" for prompt_id in range(8)})
    guidance = stage(Script({hinted(each): "1" for each in range(8)}))
    kept = []
    for step in (0, 1):
        changed = changed_rows(before, guidance(before, step))
        kept.append([row % GROUP for row in range(8 * GROUP) if row not in changed])
    assert len(set(kept[0])) > 1
    assert kept[0] != kept[1]


def test_nurl_leaves_a_group_alone_that_the_hint_did_not_mend() -> None:
    script, before = Script({hinted(0): "0x0"}), step_of({0: "0000"})
    guided = stage(script)(before, 0)
    assert len(script.asked) == GROUP - 1
    assert changed_rows(before, guided) == []
    assert guided.metrics["guidance/success_frac"] == 0.0


# ---- Guide ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "is_kept"),
    [
        ("1000", True),
        ("1110", True),
        ("1x0x", True),
        ("0000", False),
        ("1111", False),
        ("1x11", False),
        ("xxxx", False),
    ],
)
def test_guide_keeps_the_hinted_group_only_if_it_has_a_signal(outcomes: str, is_kept: bool) -> None:
    script, before = Script({hinted(0): outcomes}), step_of({1: "0101", 0: "0000"})
    guided = stage(script, "guide")(before, 0)
    assert script.asked == [hinted(0)] * GROUP
    assert changed_rows(before, guided) == (rows_of(before, 0) if is_kept else [])


# ---- SAGE -----------------------------------------------------------------------------------------------------------


def test_sage_goes_up_a_level_for_what_is_still_unsolved() -> None:
    script = Script({hinted(0, "one"): "0001", hinted(1, "two"): "0100", hinted(2, "three"): "1111"})
    before = step_of({prompt_id: "0000" for prompt_id in range(4)})
    guided = stage(script, "sage", ahead=LEVELS)(before, 0)
    rounds = [script.asked[:16], script.asked[16:28], script.asked[28:]]
    assert Counter(rounds[0]) == {hinted(each, "one"): GROUP for each in range(4)}
    assert Counter(rounds[1]) == {hinted(each, "two"): GROUP for each in (1, 2, 3)}
    assert Counter(rounds[2]) == {hinted(each, "three"): GROUP for each in (2, 3)}
    assert [guided.scored.rollouts.hints[row] for row in (0, 4, 8, 12)] == ["one", "two", "three", None]
    assert changed_rows(before, guided) == list(range(12))
    assert guided.metrics["guidance/success_frac"] == pytest.approx(3 / 4)
    assert guided.metrics["guidance/helped_frac"] == 1.0


def test_sage_takes_the_last_level_where_a_prompt_has_fewer() -> None:
    script = Script()
    stage(script, "sage", ahead={0: ("one", "two")})(step_of({0: "0000"}), 0)
    assert script.asked == [hinted(0, "one")] * 4 + [hinted(0, "two")] * 8


def test_light_level_goes_up_below_a_tenth_and_down_above_0_35() -> None:
    ten, asked = step_of({0: "0000000000"}), []
    # By step: the number of right ones among ten. 1 of 10 is not below 0.1, and 3 of 10 not above 0.35.
    script = Script()
    guidance = stage(script, "sage", schedule="light", ahead=LEVELS)
    for step, right in enumerate((0, 1, 3, 0, 0, 4, 4, 4)):
        script.outcomes = {hinted(0, name): "1" * right + "0" * (10 - right) for name in LEVELS[0]}
        script.asked.clear()
        guidance(ten, step)
        (text,) = set(script.asked)
        asked.append(text.split()[-1])
    assert asked == ["one", "two", "two", "two", "three", "three", "two", "one"]


def test_light_levels_are_of_each_prompt_and_survive_a_checkpoint() -> None:
    script = Script({hinted(1, "one"): "1"})
    guidance = stage(script, "sage", schedule="light", ahead=LEVELS)
    before = step_of({0: "0000", 1: "0000", 2: "0111"})
    guidance(before, 0)
    state = json.loads(json.dumps(guidance.state_dict()))
    assert state["rule"] == {"levels": {"0": 2, "1": 1}}
    other = stage(script, "sage", schedule="light", ahead=LEVELS)
    other.load_state_dict(state)
    assert other.state_dict() == guidance.state_dict()
    script.asked.clear()
    other(before, 1)
    assert Counter(script.asked) == {hinted(0, "two"): GROUP, hinted(1, "one"): GROUP}


def test_a_retry_of_the_light_schedule_goes_up_by_one_level() -> None:
    script = Script()
    stage(script, "sage", schedule="light", ahead=LEVELS, retries=2)(step_of({0: "0000"}), 0)
    assert [text.split()[-1] for text in script.asked[::GROUP]] == ["one", "two", "three"]


# ---- retries and budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_further_rounds_for_what_is_unsolved(retries: int) -> None:
    script = Script({hinted(0): "0001"})
    guided = stage(script, "guide", retries=retries)(step_of({0: "0000", 1: "0000"}), 0)
    assert Counter(script.asked) == {hinted(0): GROUP, hinted(1): GROUP * (1 + retries)}
    assert guided.metrics["guidance/extra_rollouts"] == GROUP * (2 + retries)
    assert guided.metrics["guidance/helped_frac"] == 1.0
    assert guided.metrics["guidance/success_frac"] == 0.5


def test_retries_come_after_the_levels_of_sage() -> None:
    script = Script()
    stage(script, "sage", ahead=LEVELS, retries=1)(step_of({0: "0000"}), 0)
    assert [text.split()[-1] for text in script.asked[::GROUP]] == ["one", "two", "three", "three"]


def test_a_retry_may_mend_a_group() -> None:
    script, before = Script({hinted(0): "00000001"}), step_of({0: "0000"})
    guided = stage(script, "guide", retries=1)(before, 0)
    assert guided.scored.verdicts.outcomes == [0.0, 0.0, 0.0, 1.0]
    assert guided.scored.rollouts.completions[0] == "wrong new5"


@pytest.mark.parametrize("settings", RULES, ids=str)
@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 20])
def test_budget_is_used_up_as_far_as_whole_groups_fit(settings: dict[str, Any], budget: int) -> None:
    script = Script({hinted(each): "0001" for each in range(4)})
    guided = stage(script, **settings, max_extra_rollouts=budget)(step_of({each: "0000" for each in range(4)}), 0)
    cost = GROUP - 1 if settings == {"rule": "nurl"} else GROUP
    groups = min(4, budget // cost)
    assert len(script.asked) == guided.metrics["guidance/extra_rollouts"]
    assert guided.metrics["guidance/extra_rollouts"] == groups * cost
    assert guided.metrics["guidance/helped_frac"] == groups / 4


def test_budget_is_of_all_rounds_together() -> None:
    script = Script()
    guided = stage(script, "sage", ahead=LEVELS, max_extra_rollouts=22)(step_of({0: "0000", 1: "0000"}), 0)
    assert len(script.asked) == 20
    assert guided.metrics["guidance/over_budget"] == 1.0


def asked_prompts(seed: int, step: int) -> list[int]:
    script = Script()
    stage(script, "guide", seed=seed, max_extra_rollouts=12)(step_of({each: "0000" for each in range(10)}), step)
    return [int(text.split()[1]) for text in script.asked[::GROUP]]


def test_who_gets_the_budget_is_random_and_the_same_on_a_rerun() -> None:
    assert asked_prompts(0, 0) == asked_prompts(0, 0)
    orders = [asked_prompts(seed, step) for seed in range(5) for step in range(5)]
    assert {len(order) for order in orders} == {3}
    assert len({tuple(order) for order in orders}) > 15
    assert {prompt_id for order in orders for prompt_id in order} == set(range(10))


# ---- when -----------------------------------------------------------------------------------------------------------


def test_probability_0_helps_nobody_and_a_schedule_follows_the_step() -> None:
    groups, shares = step_of({each: "0000" for each in range(200)}), []
    ahead = {each: ("think",) for each in range(200)}
    guided = stage(Script(), "guide", probability=0.0, ahead=ahead)(groups, 0)
    assert (guided.metrics["guidance/needed_frac"], guided.metrics["guidance/helped_frac"]) == (1.0, 0.0)
    guidance = stage(Script(), "guide", probability={0: 0.0, 10: 1.0}, ahead=ahead)
    for step in (0, 5, 10, 11):
        shares.append(guidance(groups, step).metrics["guidance/helped_frac"])
    assert (shares[0], shares[2], shares[3]) == (0.0, 1.0, 1.0)
    assert 0.35 < shares[1] < 0.65


def test_plateau_starts_after_that_many_steps_without_a_gain() -> None:
    # Mean pass rates; a gain must exceed the best so far by more than 0.25.
    script = Script()
    guidance = stage(script, start="plateau", plateau_steps=2, plateau_gain=0.25)
    seen = []
    for step, group in enumerate(("0000", "0001", "0011", "xxxx", "0111", "0001", "1111")):
        guidance(step_of({0: group, 1: "xxxx"}), step)
        seen.append(guidance.start.is_on)
    assert seen == [False, False, False, False, False, True, True]
    assert script.asked == []
    guidance(step_of({0: "0000"}), 7)
    assert len(script.asked) == GROUP - 1


def test_plateau_goes_on_from_a_checkpoint() -> None:
    guidance = stage(Script(), start="plateau", plateau_steps=2)
    for step in range(2):
        guidance(step_of({0: "0001"}), step)
    assert not guidance.start.is_on
    other = stage(Script(), start="plateau", plateau_steps=2)
    other.load_state_dict(json.loads(json.dumps(guidance.state_dict())))
    other(step_of({0: "0001"}), 2)
    assert other.start.is_on


def test_first_step_start_is_on_at_once_and_stays_on() -> None:
    start = Start(False, 1, 0.0)
    start.observe(0.5)
    assert start.is_on
