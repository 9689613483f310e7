"""Hints of the guide stage: given ahead or written by the policy, refused, cut, written anew; and exemplars."""

import json
from collections import Counter
from typing import Any

import pytest

from rlvr.guidance.hints import HintStore
from tests.unit.guide_script import Script, changed_rows, hint_store, hinted, question, stage, step_of

ONE = {0: "0000"}
WRITER: dict[str, Any] = {
    "source": "self",
    "explain_template": "explain {prompt} = {answer}",
    "write_template": "hint {level} for {prompt} = {answer} as {explanation}",
    "refuse_sufficient": False,
}
EXPLAIN = "explain question 0 = answer0"


def write_request(level: int = 1, explanation: str = "because") -> str:
    return f"hint {level} for question 0 = answer0 as {explanation}"


def writing(*hints: str) -> Script:
    """A policy that explains and then writes these hints, one after the other."""
    return Script({}, {EXPLAIN: ["because"], write_request(): hints})


def seen_faults(records: list[dict[str, Any]]) -> list[str | None]:
    return [record["fault"] for record in records]


# ---- given ahead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["nurl", "guide", "sage"])
def test_a_prompt_without_a_hint_is_left_alone_and_counted(rule: str) -> None:
    script, before = Script({hinted(1): "0101"}), step_of({0: "0000", 1: "0000", 2: "0000"})
    guided = stage(script, rule, ahead={1: ("think",)})(before, 0)
    assert set(script.asked) == {hinted(1)}
    assert guided.metrics["guidance/without_hint"] == 2.0
    assert guided.metrics["guidance/helped_frac"] == pytest.approx(1 / 3)


def test_an_empty_hint_is_none() -> None:
    script, before = Script(), step_of({0: "0000", 1: "0000"})
    guided = stage(script, ahead={0: (" \n",), 1: ("",)})(before, 0)
    assert script.asked == []
    assert changed_rows(before, guided) == []
    assert guided.metrics["guidance/helped_frac"] == 0.0
    assert guided.metrics["guidance/without_hint"] == 2.0


def test_refused_hints_given_ahead_are_looked_at_once() -> None:
    script, asked, records = Script(), [], []

    def states_answer(cases: Any) -> list[bool]:
        asked.extend(cases)
        return [hint == "it is 4" for hint, _ in cases]

    ahead = {0: ("it is 4",), 1: ("think",)}
    store = hint_store(script, ahead, states_answer, records.append, refuse_sufficient=False)
    guidance = stage(script, "guide", store=store)
    before = step_of({0: "0000", 1: "0000"})
    first, second = (guidance(before, step).metrics for step in (0, 1))
    assert set(script.asked) == {hinted(1)}
    assert sorted(asked, key=str) == [
        ("it is 4", {"answer": "answer0", "note": 0}),
        ("think", {"answer": "answer1", "note": 4}),
    ]
    assert first["guidance/leak_frac"] == 0.5
    assert "guidance/leak_frac" not in second
    assert first["guidance/without_hint"] == second["guidance/without_hint"] == 1.0
    assert sorted(records, key=str) == [
        {"step": 0, "prompt_id": 0, "level": 1, "hint": "it is 4", "fault": "stating"},
        {"step": 0, "prompt_id": 1, "level": 1, "hint": "think", "fault": None},
    ]


def test_answers_are_not_looked_for_where_they_may_stand() -> None:
    def fail(cases: Any) -> list[bool]:
        raise AssertionError(cases)

    script = Script()
    store = hint_store(script, {0: ("think",)}, fail, refuse_answers=False, refuse_sufficient=False)
    stage(script, store=store)(step_of(ONE), 0)
    assert script.asked == [hinted(0)] * 3


@pytest.mark.parametrize(("alone", "is_refused"), [("1", True), ("0", False), ("x", False)])
def test_a_hint_from_which_alone_the_policy_gets_the_answer_is_refused(alone: str, is_refused: bool) -> None:
    script = Script({"only think": alone, hinted(0): "1"})
    store = hint_store(script, {0: ("think",)}, alone_template="only {hint}")
    before = step_of(ONE)
    guided = stage(script, store=store)(before, 0)
    assert Counter(script.asked) == {"only think": 1} | ({} if is_refused else {hinted(0): 3})
    assert script.judged[0].prompts == [question(0)]
    assert script.judged[0].columns == {"answer": ["answer0"], "note": [0]}
    assert guided.metrics["guidance/leak_frac"] == float(is_refused)
    assert guided.metrics["guidance/without_hint"] == float(is_refused)
    assert bool(changed_rows(before, guided)) != is_refused


def test_refused_levels_are_of_their_own() -> None:
    """A prompt whose first hint is refused gets the next one."""
    script = Script({"one": "1", hinted(0, "two"): "0001"})
    store = hint_store(script, {0: ("one", "two", "three")})
    guided = stage(script, "sage", store=store)(step_of(ONE), 0)
    assert Counter(script.asked) == {"one": 1, "two": 1, hinted(0, "two"): 4}
    assert guided.scored.rollouts.hints == ["two"] * 4


# ---- cutting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"), [(7, "one two three four"), (6, "one two three"), (4, "one"), (3, None), (1, None)]
)
def test_hint_is_cut_to_the_length_and_the_question_never(limit: int, expected: str | None) -> None:
    for settings in ({"max_prompt_length": limit}, {}):
        script, before = Script(), step_of(ONE)
        guidance = stage(script, ahead={0: ("one two three four",)}, **settings)
        guidance.max_prompt_length = limit
        guided = guidance(before, 0)
        assert script.asked == ([] if expected is None else [hinted(0, expected)] * 3)
        assert guided.metrics["guidance/cut_hints"] == float(expected is not None and limit < 7)
        assert guided.metrics["guidance/without_hint"] == float(expected is None)
        assert guided.metrics["guidance/helped_frac"] == float(expected is not None)
        assert changed_rows(before, guided) == []


def test_length_of_the_section_wins_over_that_of_the_data() -> None:
    script = Script({hinted(0, "one two"): "1"})
    guidance = stage(script, ahead={0: ("one two three",)}, max_prompt_length=50)
    assert guidance.max_prompt_length == 50
    store = hint_store(script, {0: ("one two three",)}, refuse_sufficient=False)
    config = guidance.config.model_copy(update={"max_prompt_length": 5})
    limited = type(guidance)(config, guidance.rule, store, script.tools(), max_prompt_length=50, seed=0)
    guided = limited(step_of(ONE), 0)
    assert [hint for hint in guided.scored.rollouts.hints if hint] == ["one two"] * 3


# ---- written by the policy ------------------------------------------------------------------------------------------


def test_written_hint_comes_from_an_explanation_and_is_kept() -> None:
    script = writing("so <hint> look closer </hint>")
    script.outcomes = {hinted(0, "look closer"): "0"}
    guidance = stage(script, "guide", store=hint_store(script, None, **WRITER))
    for step in range(3):
        guidance(step_of(ONE), step)
    assert script.asked == [EXPLAIN, write_request(), *[hinted(0, "look closer")] * 12]


def test_without_explanations_the_hint_is_asked_for_at_once() -> None:
    script = Script({}, {write_request(explanation=""): ["<hint>look</hint>"]})
    guidance = stage(script, store=hint_store(script, None, **(WRITER | {"explain_template": None})))
    guidance(step_of(ONE), 0)
    assert script.asked == [write_request(explanation=""), *[hinted(0, "look")] * 3]


def test_levels_of_written_hints_are_asked_for() -> None:
    script = Script({}, {EXPLAIN: ["because"]} | {write_request(n): [f"<hint>l{n}</hint>"] for n in (1, 2, 3)})
    stage(script, "sage", store=hint_store(script, None, **WRITER))(step_of(ONE), 0)
    assert [text for text in script.asked if text.startswith("question")] == [
        hinted(0, f"l{level}") for level in (1, 2, 3) for _ in range(4)
    ]


GARBAGE = ["no tag", "<hint></hint>", "<hint> \n </hint>", "<hint>open", "</hint><hint>", f"<hint>{'x' * 5000}</hint>"]


@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_asked_for_again_and_then_gone_without(garbage: str, attempts: int) -> None:
    records: list[dict[str, Any]] = []
    script, before = writing(garbage), step_of(ONE)
    store = hint_store(script, None, record=records.append, **WRITER, attempts=attempts)
    guidance = stage(script, store=store)
    for step in (0, 1):  # nothing was kept, so that the next step tries again
        script.asked.clear()
        guided = guidance(before, step)
        assert script.asked == [EXPLAIN, write_request()] * attempts
        assert changed_rows(before, guided) == []
        assert guided.metrics["guidance/unusable_hints"] == attempts
        assert guided.metrics["guidance/without_hint"] == 1.0
        assert "guidance/leak_frac" not in guided.metrics
    assert seen_faults(records) == ["unusable"] * 2 * attempts


def test_a_later_attempt_is_used() -> None:
    script = writing("no tag", "<hint>it is 4</hint>", "<hint>look</hint>", "<hint>never</hint>")
    records: list[dict[str, Any]] = []
    store = hint_store(
        script, None, lambda cases: ["4" in hint for hint, _ in cases], records.append, **WRITER, attempts=5
    )
    guided = stage(script, store=store)(step_of(ONE), 0)
    assert script.asked[-3:] == [hinted(0, "look")] * 3
    assert seen_faults(records) == ["unusable", "stating", None]
    assert guided.metrics["guidance/unusable_hints"] == 1.0
    assert guided.metrics["guidance/leak_frac"] == 0.5
    assert guided.metrics["guidance/without_hint"] == 0.0


@pytest.mark.parametrize(("every", "expected"), [(None, 1), (1, 6), (2, 3), (4, 2)])
def test_hints_are_written_anew_after_that_many_steps(every: int | None, expected: int) -> None:
    script = writing(*(f"<hint>h{number}</hint>" for number in range(9)))
    guidance = stage(script, store=hint_store(script, None, **WRITER, refresh_every=every))
    for step in range(6):
        guidance(step_of(ONE), step)
    assert script.asked.count(write_request()) == expected
    assert script.asked[-1] == hinted(0, f"h{expected - 1}")


def test_written_hints_survive_a_checkpoint_with_their_age() -> None:
    script = writing("<hint>h0</hint>", "<hint>h1</hint>")
    guidance = stage(script, store=hint_store(script, None, **WRITER, refresh_every=2))
    guidance(step_of(ONE), 0)
    state = json.loads(json.dumps(guidance.state_dict()))
    other = stage(script, store=hint_store(script, None, **WRITER, refresh_every=2))
    other.load_state_dict(state)
    assert other.state_dict() == guidance.state_dict()
    other(step_of(ONE), 1)
    assert script.asked[-1] == hinted(0, "h0")
    other(step_of(ONE), 2)
    assert script.asked[-1] == hinted(0, "h1")


def test_refused_hints_survive_a_checkpoint() -> None:
    script = Script()
    stores = [hint_store(script, {0: ("h",)}, lambda cases: [True] * len(cases)) for _ in range(2)]
    stage(script, store=stores[0])(step_of(ONE), 0)
    stores[1].load_state_dict(json.loads(json.dumps(stores[0].state_dict())))
    guided = stage(script, store=stores[1])(step_of(ONE), 1)
    assert "guidance/leak_frac" not in guided.metrics
    assert guided.metrics["guidance/without_hint"] == 1.0


def test_what_the_policy_writes_is_filled_in_once() -> None:
    script = writing("<hint>{prompt} {0} {</hint>")
    stage(script, store=hint_store(script, None, **WRITER))(step_of(ONE), 0)
    assert script.asked[-1] == hinted(0, "{prompt} {0} {")


def test_store_gives_the_same_hint_to_a_prompt_that_comes_again() -> None:
    script = writing("<hint>h0</hint>", "<hint>h1</hint>")
    store: HintStore = hint_store(script, None, **WRITER)
    guidance = stage(script, store=store)
    guidance(step_of(ONE), 0)
    guidance(step_of({1: "0000"}), 1)
    guidance(step_of(ONE), 2)
    assert script.asked[-1] == hinted(0, "h0")


# ---- exemplars ------------------------------------------------------------------------------------------------------


def named_step(prompts: dict[int, tuple[str, str]]) -> Any:
    """A step whose prompts are these texts."""
    scored = step_of({prompt_id: outcomes for prompt_id, (_, outcomes) in prompts.items()})
    texts = [prompts[each][0] for each in scored.rollouts.group_ids]
    object.__setattr__(scored.rollouts, "prompts", texts)
    return scored


def test_exemplars_are_the_nearest_solved_problems_before_the_question() -> None:
    script = Script()
    guidance = stage(script, "exemplar", exemplars=2)
    guidance(named_step({1: ("red blue", "0100"), 2: ("red green", "1000"), 3: ("black", "1111")}), 0)
    assert script.asked == []
    guided = guidance(named_step({4: ("blue red red", "0000"), 2: ("red green", "0000")}), 1)
    assert Counter(script.asked) == {
        "red blue\nright old1\n\nred green\nright old4\n\nblue red red": 4,
        "red blue\nright old1\n\nblack\nright old11\n\nred green": 4,  # never the prompt's own
    }
    assert guided.metrics["guidance/helped_frac"] == 1.0


def test_exemplars_of_the_same_step_serve_and_are_right_completions_without_help() -> None:
    script = Script()
    guidance = stage(script, "exemplar", exemplars=5, exemplar_template="{prompt} -> {completion}")
    guidance(step_of({0: "0010", 1: "0000", 2: "0x00"}), 0)
    assert set(script.asked) == {"question 0 -> right old2\n\nquestion 1", "question 0 -> right old2\n\nquestion 2"}
    script.outcomes = {text: "1" for text in script.asked}
    script.asked.clear()
    guidance(step_of({1: "0000"}), 1)
    guidance(step_of({3: "0000"}), 2)
    assert set(script.asked) == {f"question 0 -> right old2\n\nquestion {each}" for each in (1, 3)}


def test_without_any_solved_problem_nothing_happens() -> None:
    script, before = Script(), step_of({0: "0000", 1: "xx00"})
    guided = stage(script, "exemplar")(before, 0)
    assert script.asked == []
    assert changed_rows(before, guided) == []
    assert guided.metrics["guidance/without_hint"] == 2.0
    assert guided.metrics["guidance/helped_frac"] == 0.0


def test_exemplars_survive_a_checkpoint_and_condition_the_loss() -> None:
    script = Script()
    guidance = stage(script, "exemplar")
    guidance(step_of({0: "0100", 1: "0001"}), 0)
    other = stage(script, "exemplar")
    other.load_state_dict(json.loads(json.dumps(guidance.state_dict())))
    script.outcomes = {f"{question(1)}\nright old7\n\n{question(0)}\nright old1\n\n{question(2)}": "01"}
    guided = other(step_of({2: "0000"}), 1)
    assert set(script.asked) == set(script.outcomes)
    assert guided.scored.verdicts.outcomes == [0.0, 1.0, 0.0, 1.0]
    assert guided.scored.rollouts.loss_context_ids == guided.scored.rollouts.context_ids
    assert guided.scored.rollouts.context_ids != guided.scored.rollouts.prompt_ids
