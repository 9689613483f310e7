"""Every check of an instruction, kept and broken, and what becomes of entries at fault."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._instructions import CHECKS
from rewards._item import Status
from rewards.ifeval import ifeval
from rlvr.errors import RewardError

# id, arguments, texts that follow, texts that do not.
TABLE: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sea", "Sky"]}, ["The SEA, the sky", "seaside skyline"], ["sea", "s e a sky"]),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, ["a A", "aaa"], ["a", "b"]),
    ("keywords:frequency", {"keyword": "a.", "frequency": 2, "relation": "less than"}, ["ab ac", "a."], ["a. a."]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, ["category", "C"], ["a Cat.", "c++ is"]),
    ("keywords:letter_frequency", {"letter": "Z", "let_frequency": 2}, ["zZ", "zebra zoo"], ["z", "none"]),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "less than"},
        ["wow!"],
        ["wow!!"],
    ),
    ("length_constraints:number_words", {"num_words": 3}, ["one two three", "a-b c"], ["one two", "..."]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "exactly"},
        ["One. Two.", "One! Two", 'He said "no." Then left.', "Pi is 3.14. Yes", "What?! No...", "一。二。"],
        ["One.", "One. Two. Three", "3.14"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none *** two\n***"],
        ["one", "one\n\ntwo", "one *** *** two", "one***two***three"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["First it\n\nthen, it", 'First\n\n\n\n"Then" it'],
        ["Then\n\nfirst", "First\n\nthen\n\nthen", "First\n\nthenceforth", "Then"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b c]", "[[x]] []"],
        ["[a]", "[a\n] [b]"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. y"], ["PS y", "x"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x P.P.S. y"], ["x P.S. y"]),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["x note: y"], ["x note y"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  - b", "x\n*a\ny\n* b"],
        ["* a", "* a\n* b\n* c", "**a**\n* b", "---\n* b", "*\n* b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["So: My answer is yes.", "My answer is maybe."],
        ["my answer is yes.", "yes"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and **b c**", "*a* *b* *c*"],
        ["*a*", "* *  **x**", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1 a SECTION 2 b", "SECTION1 SECTION2"],
        ["SECTION 1", "SECTION a SECTION b", "Section 1 Section 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ["[1]", '```json\n{"a": 1}\n```', "```\n1\n```"],
        ["so [1]", "{a: 1}", "[" * 5000],
    ),
    ("detectable_format:title", {}, ["<<On the sea>>\ntext"], ["<On>", "<<>>", "<< >>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one******one", "one******two******three", "one************two", "one******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "What is it?"},
        ["what is it? A cat", " What is it?"],
        ["A cat. What is it?"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["x. any questions? ", '"Any questions?"'],
        ["Any questions? No"],
    ),
    ("startend:start_checker", {"start_phrase": "Well,"}, ["well, yes", '"Well, no"'], ["Oh well,"]),
    ("startend:quotation", {}, ['"yes"', ' "a "b" c"\n'], ['"', 'a "b"', "'a'"]),
    ("change_case:english_capital", {}, ["ALL OF IT. 3!"], ["Not ALL", "3"]),
    ("change_case:english_lowercase", {}, ["all of it. 3!"], ["not All", "3"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2}, ["NASA and ESA", "A B c"], ["NASA", "Nasa Esa"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "at most"},
        ["NASA", "none"],
        ["NASA ESA"],
    ),
    ("punctuation:no_comma", {}, ["no such sign"], ["one, two"]),
]


def follows(text: str, name: str, arguments: Any = None, **options: Any) -> float | None:
    return ifeval.judge(text, [{"id": name, "kwargs": arguments}], **options).value


def test_every_check_is_in_the_table() -> None:
    assert {row[0] for row in TABLE} == set(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), TABLE, ids=[row[0] for row in TABLE])
def test_check(name: str, arguments: dict[str, Any], kept: list[str], broken: list[str]) -> None:
    assert [text for text in kept if follows(text, name, arguments) != 1.0] == []
    assert [text for text in broken if follows(text, name, arguments) != 0.0] == []


COMMA, TITLE, YES = "punctuation:no_comma", "detectable_format:title", "detectable_format:constrained_response"


def test_all_or_the_share() -> None:
    wanted = [{"id": COMMA}, {"id": TITLE}, {"id": YES, "kwargs": {}}]
    texts = ["<<My answer is yes.>>", "<<x>>", "x", "a,b"]
    assert ifeval(texts, instructions=[wanted] * 4) == [1.0, 0.0, 0.0, 0.0]
    got = ifeval(texts, instructions=[wanted] * 4, score="fraction")
    assert got == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert ifeval.judge("x", wanted).reason == f"not followed: {TITLE}, {YES}"


def test_columns_as_json_text_and_as_published() -> None:
    wanted = [
        {"id": "length_constraints:number_words", "kwargs": {"num_words": 2.0, "relation": "at least", "letter": None}}
    ]
    assert ifeval(["a b", "a"], instructions=[json.dumps(wanted)] * 2) == [1.0, 0.0]
    ids, kwargs = [wanted[0]["id"], COMMA], [wanted[0]["kwargs"], {"num_words": None}]
    assert ifeval(["a b", "a, b"], instruction_id_list=[ids] * 2, kwargs=[kwargs] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("Sure, here it is:\nno comma here", COMMA, None),
        ("no comma here\nAnything else, perhaps?", COMMA, None),
        ("Sure, here:\nno comma here\nWell, done", COMMA, None),
        ("**the end**", "startend:end_checker", {"end_phrase": "the end"}),
        ("Sure:\n*the end*", "startend:end_checker", {"end_phrase": "the end"}),
    ],
)
def test_loose_looks_past_frames_and_asterisks(text: str, name: str, arguments: Any) -> None:
    assert follows(text, name, arguments) == 0.0
    assert follows(text, name, arguments, level="loose") == 1.0


def test_loose_does_not_excuse_the_middle_or_everything() -> None:
    assert follows("a\nb, c\nd", COMMA, level="loose") == 0.0
    assert follows("a, b", COMMA, level="loose") == 0.0


def test_tag_and_blank_text() -> None:
    assert follows("so, <answer>x</answer>", COMMA, tag="answer") == 1.0
    for text in ("", " \n", "<answer> </answer>"):
        verdict = ifeval.judge(text, [{"id": COMMA}], tag="answer")
        assert (verdict.value, verdict.status) == (0.0, Status.NO_ANSWER)


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        ([{"id": "language:response_language", "kwargs": {"language": "de"}}], "no check is called 'language:"),
        ([{"id": "length_constraints:number_words"}], "number_words: missing a required argument: 'num_words'"),
        ([{"id": "length_constraints:number_words", "kwargs": {"num_words": "ten"}}], "must be a whole number"),
        ([{"id": "length_constraints:number_words", "kwargs": {"num_words": 2.5}}], "must be a whole number"),
        (
            [{"id": "length_constraints:number_words", "kwargs": {"num_words": 2, "relation": "about"}}],
            "relation 'about'",
        ),
        ([{"id": "keywords:existence", "kwargs": {"keywords": "sea"}}], "must be a list of texts"),
        ([{"id": "keywords:existence", "kwargs": {"keywords": []}}], "must be a list of texts"),
        ([{"id": "keywords:frequency", "kwargs": {"keyword": "", "frequency": 1}}], "must be text"),
        ([{"id": COMMA, "kwargs": {"commas": 3}}], "unexpected keyword argument 'commas'"),
        ([{"kwargs": {}}], "'id'"),
        ([], "there are none"),
        ("[", "cannot be read"),
        (3, "cannot be read"),
        ([3], "cannot be read"),
        (None, "add one, a list of {id, kwargs}"),
    ],
)
def test_entry_at_fault_has_no_verdict(instructions: Any, reason: str) -> None:
    verdict = ifeval.judge("some text", instructions)
    assert (verdict.value, verdict.status) == (None, Status.ERROR)
    assert reason in verdict.reason


@pytest.mark.parametrize("options", [{"level": "lax"}, {"score": "mean"}])
def test_options_name_their_choices(options: dict[str, str]) -> None:
    with pytest.raises(RewardError, match="is not one of"):
        follows("x", COMMA, **options)


EVERY = [{"id": name, "kwargs": arguments} for name, arguments, _, _ in TABLE]


@given(st.text() | st.text(alphabet='*-[]<>".,!?\n aA#PS1'))
def test_any_text_is_judged_by_every_check(text: str) -> None:
    for level in ("strict", "loose"):
        value = ifeval.judge(text, EVERY, level=level, score="fraction").value
        assert value is not None
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    "unit", ["*", "[", "<<", ".", "\n", "* \n", "p. ", '"', "***", "aA ", "```", "\n\n", "P.P.", "?)"]
)
def test_every_check_takes_linear_time(unit: str) -> None:
    # At quadratic time this would take hours.
    assert ifeval.judge(unit * (500_000 // len(unit)) + "x", EVERY, level="loose", score="fraction").value is not None
