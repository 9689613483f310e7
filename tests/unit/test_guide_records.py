"""What the guide stage leaves in the records of a step, and what it counts."""

import copy
from typing import Any

import numpy as np
import pytest

from rlvr.guidance.tools import Guided
from rlvr.types import OffPolicy, ScoredRollouts
from tests.unit.guide_script import (
    EOS,
    Script,
    changed_rows,
    hint_store,
    hinted,
    ids_of,
    question,
    record_of,
    rows_of,
    stage,
    step_of,
)

CONDITIONINGS = ["keep", "drop_with_ratio", "drop_plain"]
GROUPS = {3: "0101", 4: "0000", 5: "x000", 6: "1111", 7: "0000"}
ANSWERS = {hinted(4): "0110", hinted(5): "11x0", hinted(7): "0000", question(4): "0", question(5): "0"}


def guided_step(
    rule: str, interleaved: bool = True, chat: bool = False, **config: Any
) -> tuple[ScoredRollouts, Guided]:
    """Prompts 4 and 5 are mended, 7 is not, 3 and 6 need no help."""
    before = step_of(GROUPS, interleaved=interleaved, chat=chat)
    return before, stage(Script(ANSWERS), rule, **config)(before, 0)


def helped_rows(guided: Guided) -> list[int]:
    return [row for row, hint in enumerate(guided.scored.rollouts.hints) if hint is not None]


# ---- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("rule", ["nurl", "guide", "sage"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_other_groups_keep_their_very_records(rule: str, conditioning: str, interleaved: bool) -> None:
    before, guided = guided_step(rule, interleaved, hint_conditioning=conditioning)
    untouched = [*rows_of(before, 3), *rows_of(before, 6), *rows_of(before, 7)]
    assert not set(changed_rows(before, guided)) & set(untouched)
    for row in untouched:
        for name, value in record_of(before, row).items():
            assert record_of(guided.scored, row)[name] is value, name


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("rule", ["nurl", "guide", "sage"])
def test_prompts_columns_and_groups_stay(rule: str, conditioning: str) -> None:
    before, guided = guided_step(rule, hint_conditioning=conditioning)
    assert changed_rows(before, guided)
    for name in ("group_ids", "prompts", "prompt_ids", "columns"):
        assert getattr(guided.scored.rollouts, name) == getattr(before.rollouts, name), name
    assert guided.scored.verdicts.names == before.verdicts.names


def test_unhelped_is_the_record_without_help() -> None:
    before = step_of(GROUPS)
    copied = copy.deepcopy(before)
    guided = stage(Script(ANSWERS), "guide")(before, 0)
    assert guided.scored.unhelped.rollouts is before.rollouts
    assert guided.scored.unhelped.verdicts is before.verdicts
    assert before == copied


def test_verdicts_are_of_the_new_completions() -> None:
    before, guided = guided_step("guide", interleaved=False)
    verdicts = guided.scored.verdicts
    assert verdicts.outcomes[4:12] == [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, None, 0.0]
    assert verdicts.rewards[4:12] == [0.0, 2.0, 2.0, 0.0, 2.0, 2.0, None, 0.0]
    assert [row[0] for row in verdicts.components[4:12]] == verdicts.outcomes[4:12]
    assert verdicts.statuses[4:12] == step_of({0: "0110", 1: "11x0"}).verdicts.statuses
    assert verdicts.outcomes[:4] == before.verdicts.outcomes[:4]


def test_new_completions_are_judged_with_the_prompt_and_columns_of_their_rows() -> None:
    script, before = Script(ANSWERS), step_of(GROUPS, interleaved=True)
    stage(script, "guide")(before, 0)
    (judged,) = script.judged
    wanted = sorted([*rows_of(before, 4), *rows_of(before, 5), *rows_of(before, 7)])
    assert judged.prompts == [before.rollouts.prompts[row] for row in wanted]
    assert judged.columns == {name: [values[row] for row in wanted] for name, values in before.rollouts.columns.items()}
    assert not set(judged.completions) & set(before.rollouts.completions)


# ---- what the helped rows are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(
    ("rule", "options"), [("nurl", {}), ("nurl", {"plain_rollout": "resample"}), ("guide", {}), ("sage", {})], ids=str
)
def test_contexts_and_ratios_of_each_conditioning(rule: str, options: dict[str, str], conditioning: str) -> None:
    before, guided = guided_step(rule, hint_conditioning=conditioning, **options)
    changed = changed_rows(before, guided)
    rollouts, with_hint = guided.scored.rollouts, helped_rows(guided)
    assert {rollouts.group_ids[row] for row in with_hint} == {4, 5}
    assert len(with_hint) == (6 if rule == "nurl" else 8)
    for row in range(len(rollouts.group_ids)):
        is_hinted = row in with_hint
        prompt_id = rollouts.group_ids[row]
        assert rollouts.context_ids[row] == ids_of(hinted(prompt_id) if is_hinted else question(prompt_id))
        is_dropped = not is_hinted or conditioning != "keep"
        assert rollouts.loss_context_ids[row] == ids_of(question(prompt_id) if is_dropped else hinted(prompt_id))
        expected = OffPolicy() if is_hinted and conditioning == "drop_with_ratio" else None
        assert rollouts.off_policy[row] == expected
        assert rollouts.hints[row] == ("think" if is_hinted else None)
        assert rollouts.completion_ids[row] == [*ids_of(rollouts.completions[row]), EOS]
        assert rollouts.truncated[row] == (row not in changed and before.rollouts.truncated[row])
        assert len(rollouts.generated_masks[row]) == len(rollouts.completion_ids[row])


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("plain", ["reuse", "resample"])
def test_engine_probabilities_are_unknown_only_where_the_hint_is_dropped_plainly(conditioning: str, plain: str) -> None:
    before, guided = guided_step("nurl", hint_conditioning=conditioning, plain_rollout=plain)
    rollouts = guided.scored.rollouts
    assert rollouts.sampling_logprobs is not None
    for row, values in enumerate(rollouts.sampling_logprobs):
        assert len(values) == len(rollouts.completion_ids[row])
        is_hinted = rollouts.hints[row] is not None
        assert np.isnan(values).all() == (is_hinted and conditioning == "drop_plain")
        if not np.isnan(values).any():
            assert set(values) == {-0.5 if row in changed_rows(before, guided) else -1.0}


def test_an_engine_without_probabilities_stays_one() -> None:
    before = step_of({4: "0000"})
    object.__setattr__(before.rollouts, "sampling_logprobs", None)
    for conditioning in CONDITIONINGS:
        guided = stage(Script(ANSWERS), hint_conditioning=conditioning)(before, 0)
        assert changed_rows(before, guided)
        assert guided.scored.rollouts.sampling_logprobs is None


@pytest.mark.parametrize(("rule", "default"), [("nurl", "keep"), ("sage", "keep"), ("guide", "drop_with_ratio")])
def test_default_conditioning_is_that_of_the_paper(rule: str, default: str) -> None:
    _, by_default = guided_step(rule)
    _, named = guided_step(rule, hint_conditioning=default)
    assert by_default.scored == named.scored
    assert stage(Script(), rule).is_off_policy == (default == "drop_with_ratio")


def test_a_group_may_be_in_need_of_several_ratios() -> None:
    """A kept or resampled completion of a mixed group has an ordinary ratio."""
    for plain in ("reuse", "resample"):
        _, guided = guided_step("nurl", hint_conditioning="drop_with_ratio", plain_rollout=plain, interleaved=False)
        assert [how is None for how in guided.scored.rollouts.off_policy[4:8]].count(True) == 1


def test_the_hint_stands_in_the_last_user_message() -> None:
    script, before = Script(ANSWERS), step_of(GROUPS, chat=True)
    guided = stage(script, "guide")(before, 0)
    assert script.contexts[0][0] == {"role": "system", "content": "be brief"}
    assert script.contexts[0][1]["content"] in (hinted(4), hinted(5), hinted(7))
    assert guided.scored.rollouts.prompts == before.rollouts.prompts
    assert guided.scored.rollouts.completions[4] != before.rollouts.completions[4]


def test_template_is_the_configured_one() -> None:
    script = Script()
    stage(script, "guide", prompt_template="{hint}: {prompt}")(step_of({4: "0000"}), 0)
    assert set(script.asked) == {"think: question 4"}


# ---- metrics --------------------------------------------------------------------------------------------------------


def written(prompt_id: int) -> str:
    return f"write {prompt_id}"


def test_metrics_by_hand() -> None:
    """Five of eight prompts are in need; 5 and 6 get no hint, 0 and 7 are mended, 1 is not."""
    hints = {0: ["sum up"], 1: ["go on"], 5: ["-", "-"], 6: ["leak a", "leak b"], 7: ["enough said", "one two three"]}
    texts = {f"write {each}": [f"<hint>{h}</hint>" if h != "-" else h for h in hints[each]] for each in hints}
    answers = {hinted(0, "sum up"): "110", hinted(1, "go on"): "000", hinted(7, "one two"): "x1x", "enough said": "1"}
    script = Script(answers, texts)
    store = hint_store(
        script,
        None,
        lambda cases: [hint.startswith("leak") for hint, _ in cases],
        source="self",
        attempts=2,
        explain_template=None,
        write_template="{answer}",
    )
    groups = {0: "0000", 1: "0000", 2: "0101", 3: "1111", 4: "xxxx", 5: "0000", 6: "0000", 7: "00x0"}
    before = step_of(groups)
    script.texts = {f"answer{each}": script.texts[written(each)] for each in hints}
    guided = stage(script, store=store, max_prompt_length=5)(before, 0)
    assert guided.metrics == {
        "guidance/needed_frac": 5 / 8,
        "guidance/helped_frac": 3 / 8,
        "guidance/signal_plain_frac": 1 / 8,
        "guidance/signal_frac": 3 / 8,
        "guidance/extra_rollouts": 9.0,
        "guidance/extra_tokens": 27.0,  # two words and the end each
        "guidance/hint_rollouts": 12.0,  # written: 5, then again 3; tried alone: 3, then 1
        "guidance/hint_rollout_tokens": 35.0,  # 3 + 3 + 2 + 3 + 3, then 2 + 3 + 4; 4 of 3
        "guidance/over_budget": 0.0,
        "guidance/without_hint": 2.0,
        "guidance/cut_hints": 1.0,  # "one two three"
        "guidance/success_frac": pytest.approx(2 / 3),
        "guidance/hint_tokens": 3.0,  # "Hint:" and two words
        "guidance/hinted_pass_rate": pytest.approx(3 / 7),  # without the two that have no verdict
        "guidance/leak_frac": pytest.approx(3 / 6),  # two that state the answer and one that suffices
        "guidance/unusable_hints": 2.0,
    }


def test_metrics_of_a_step_without_need_and_of_one_beyond_the_budget() -> None:
    nothing = {name: 0.0 for name in ("needed_frac", "helped_frac", "extra_rollouts", "extra_tokens", "over_budget")}
    nothing |= {"hint_rollouts": 0.0, "hint_rollout_tokens": 0.0}
    nothing |= {"signal_plain_frac": 0.5, "signal_frac": 0.5, "without_hint": 0.0, "cut_hints": 0.0}
    guided = stage(Script())(step_of({0: "1111", 1: "0111"}), 0)
    assert guided.metrics == {f"guidance/{name}": value for name, value in nothing.items()}

    guided = stage(Script(), max_extra_rollouts=2)(step_of({0: "0000", 1: "0111"}), 0)
    assert guided.metrics["guidance/over_budget"] == 1.0
    assert "guidance/success_frac" not in guided.metrics
    assert "guidance/hinted_pass_rate" not in guided.metrics


def test_hint_tokens_are_of_the_prompts_that_were_helped() -> None:
    """Not of those that the budget left out."""
    ahead = {0: ("one",), 1: ("one two three four five",)}
    for seed in range(6):
        script = Script()
        guided = stage(script, "guide", ahead=ahead, max_extra_rollouts=4, seed=seed)(
            step_of({0: "0000", 1: "0000"}), 0
        )
        (asked,) = set(script.asked)
        assert guided.metrics["guidance/hint_tokens"] == len(asked.split()) - 2


def test_counts_begin_anew_at_each_step() -> None:
    guidance = stage(Script(), "guide", ahead={0: ("think",)})
    before = step_of({0: "0000", 1: "0000"})
    first, second = (guidance(before, step).metrics for step in (0, 1))
    assert first["guidance/without_hint"] == second["guidance/without_hint"] == 1.0
    assert first["guidance/extra_rollouts"] == second["guidance/extra_rollouts"] == 4.0
