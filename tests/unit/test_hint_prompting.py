"""Hints in prompts: what is cut, what counts as a written hint, and what a request is filled with."""

import copy
from typing import Any

import pytest

from rlvr.errors import DataError
from rlvr.guidance.prompting import (
    MAX_HINT_CHARACTERS,
    Prompt,
    cut_help,
    hint_in,
    request_text,
    text_of_prompt,
    with_help,
)

TEMPLATE = "{prompt}\n\nHint: {hint}"
CHAT = [
    {"role": "system", "content": "be {brief}"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "well"},
    {"role": "user", "content": "a {b} c"},
    {"role": "assistant", "content": "so"},
]
HOSTILE = ["{hint}", "{prompt}{0}{", "}}{{", "\0", "\ud800", "\u202e42\u202c", "%s \\1 $x", "x" * 2**20]


def words(prompt: Prompt) -> int:
    return len(text_of_prompt(prompt).split())


# ---- with_help ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("help", HOSTILE)
def test_prompt_and_hint_stand_in_the_template_as_they_are(text: str, help: str) -> None:
    assert with_help(text, TEMPLATE, help) == f"{text}\n\nHint: {help}"


def test_of_messages_the_last_user_message_is_replaced_and_nothing_is_changed_in_place() -> None:
    before = copy.deepcopy(CHAT)
    helped = with_help(CHAT, TEMPLATE, "h")
    assert helped == [*CHAT[:3], {"role": "user", "content": "a {b} c\n\nHint: h"}, CHAT[4]]
    assert before == CHAT
    assert isinstance(helped, list)
    helped[0]["content"] = "changed"
    assert before == CHAT


def test_other_keys_of_a_message_stay() -> None:
    assert with_help([{"role": "user", "content": "q", "name": "n"}], TEMPLATE, "h") == [
        {"role": "user", "content": "q\n\nHint: h", "name": "n"}
    ]


def test_template_may_leave_the_prompt_out_and_has_literal_braces_written_twice() -> None:
    assert with_help("q", "{hint}", "h") == "h"
    assert with_help("q", "{{{hint}}} {{prompt}}", "h") == "{h} {prompt}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{promt} {hint}", ["names 'promt'", "did you mean 'prompt'?"]),
        ("{hint} {zzz}", ["names 'zzz'", "there are prompt, hint"]),
        ("{} {hint}", ["names '0'"]),
        ("{hint", ["cannot be filled in"]),
        ("{hint[x]}", ["cannot be filled in"]),
        ("{hint:d}", ["cannot be filled in"]),
    ],
)
def test_template_that_cannot_be_filled_in_is_named(template: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        with_help("q", template, "h")
    assert all(word in str(caught.value) for word in [repr(template), *words])
    assert "\n" not in str(caught.value)


def test_messages_without_a_user_are_refused() -> None:
    for call in (lambda: text_of_prompt([CHAT[0]]), lambda: with_help([], TEMPLATE, "h")):
        with pytest.raises(DataError, match="no message of the role 'user'"):
            call()


def test_text_of_prompt() -> None:
    assert text_of_prompt("a {b}") == "a {b}"
    assert text_of_prompt(CHAT) == "a {b} c"


# ---- cut_help -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["one two", [{"role": "user", "content": "one two"}]])
@pytest.mark.parametrize("num_words", range(9))
def test_as_many_whole_words_as_fit(prompt: Prompt, num_words: int) -> None:
    help = "  a  bb\tccc\ndd e  "
    expected = [None, "  a", "  a  bb", "  a  bb\tccc", "  a  bb\tccc\ndd"]
    cut = cut_help(prompt, TEMPLATE, help, 3 + num_words, words)
    assert cut == (expected[num_words] if num_words < 5 else help)
    if cut is not None:
        assert words(with_help(prompt, TEMPLATE, cut)) <= 3 + num_words


def test_prompt_over_the_limit_by_itself_gets_no_help() -> None:
    assert cut_help("one two three", TEMPLATE, "a b", 2, words) is None


@pytest.mark.parametrize("help", ["", " \n\t"])
def test_blank_help_is_none(help: str) -> None:
    assert cut_help("q", TEMPLATE, help, 100, words) is None


def test_blanks_at_the_end_may_go_alone() -> None:
    assert cut_help("q", TEMPLATE, "a b   ", 13, lambda prompt: len(text_of_prompt(prompt))) == "a b"


def test_huge_help_costs_few_counts_and_a_word_that_is_too_long_is_not_cut() -> None:
    counts: list[int] = []

    def counted(prompt: Prompt) -> int:
        counts.append(words(prompt))
        return counts[-1]

    assert cut_help("q", TEMPLATE, "ab " * 2**18, 102, counted) == " ".join(["ab"] * 100)
    assert len(counts) < 25
    assert cut_help("q", TEMPLATE, "x" * 2**20, 100, lambda prompt: len(text_of_prompt(prompt))) is None


# ---- hint_in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tag", "hint"),
    [
        ("x <hint> one </hint> <hint>\ntwo\n</hint> y", "hint", "two"),
        ("<hint>open <hint>closed</hint> <hint>not", "hint", "closed"),
        ("<hint> \n</hint>", "hint", None),
        ("<hint>one</hint><hint></hint>", "hint", None),
        ("no tag", "hint", None),
        ("<hint>not closed", "hint", None),
        ("", "hint", None),
        (" whole <hint>x</hint> ", None, "whole <hint>x</hint>"),
        (" \n", None, None),
        ("<hint>\0\u202e{x}\ud800</hint>", "hint", "\0\u202e{x}\ud800"),
        ("x" * MAX_HINT_CHARACTERS, None, "x" * MAX_HINT_CHARACTERS),
        ("x" * (MAX_HINT_CHARACTERS + 1), None, None),
        (f"<hint>{'x' * 2**20}</hint>", "hint", None),
        ("<hint>" * 2**17, "hint", None),
    ],
)
def test_written_hint(text: str, tag: str | None, hint: str | None) -> None:
    assert hint_in(text, tag) == hint


# ---- request_text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE)
def test_request_holds_columns_as_they_are_and_extra_wins(value: str) -> None:
    row = {"prompt": value, "answer": value, "level": 9, "explanation": "old"}
    text = request_text("{prompt}|{answer}|{explanation}|{level}", row, explanation=value, level=2)
    assert text == f"{value}|{value}|{value}|2"


def test_request_reads_json_text_only_where_a_key_is_asked_for() -> None:
    metadata = '{"expression": "{x} + 1", "terms": [3, 4]}'
    row: dict[str, Any] = {"metadata": metadata, "prompt": CHAT, "steps": '["a", "b"]', "live": {"k": 1}}
    assert request_text("{metadata[expression]} {steps[1]} {live[k]}", row) == "{x} + 1 b 1"
    assert request_text("{metadata} {metadata[terms][1]}", row) == f"{metadata} 4"
    assert request_text("{prompt}", row) == "a {b} c"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{anwser}", ["names 'anwser'", "did you mean 'answer'?"]),
        ("{empty}", ["names 'empty'", "there are answer, metadata, deep, level"]),
        ("{metadata[expresion]}", ["names 'expresion'", "did you mean 'expression'?"]),
        ("{answer[key]}", ["cannot be filled in"]),
        ("{deep[key]}", ["cannot be filled in"]),
        ("{answer.nothing}", ["cannot be filled in"]),
        ("{answer!z}", ["cannot be filled in"]),
    ],
)
def test_request_that_the_row_cannot_fill_is_named(template: str, words: list[str]) -> None:
    row = {"answer": "7", "metadata": '{"expression": "x"}', "empty": None, "deep": "[" * 10**6}
    with pytest.raises(DataError) as caught:
        request_text(template, row, level=1)
    assert all(word in str(caught.value) for word in [repr(template), *words])
    assert "\n" not in str(caught.value)


def test_request_with_an_empty_answer_is_filled() -> None:
    assert request_text("({answer})", {"answer": ""}) == "()"
