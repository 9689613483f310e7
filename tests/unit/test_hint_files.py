"""Hints and completions that were written ahead of time, and the sentence for every mistake in them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from rlvr.data.prompts import _stored
from rlvr.errors import DataError
from rlvr.guidance.hint_files import hints_of_column, read_completions, read_hints, write_hints

PROMPTS = {0: "zero", 1: "one {x}", 3: "three \u202e٣\0"}


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500 + 2 * len(str(arguments[0]))
    return message


def stored(*values: Any) -> list[Any]:
    """As a data set holds the column."""
    column: list[Any] = Dataset.from_dict({"hint": _stored("hint", list(values), "data.train")})["hint"][:]
    return column


# ---- a column -------------------------------------------------------------------------------------------------------


def test_texts_and_lists_of_a_column_by_prompt() -> None:
    assert hints_of_column(stored("a", None, "", " \n", "{b}"), [0, 2, 3, 4, 9], "hint") == {0: ("a",), 9: ("{b}",)}
    levels = stored(["a", "b"], None, [], ["", "c"], [" "])
    assert hints_of_column(levels, [0, 1, 2, 3, 4], "hint") == {0: ("a", "b"), 3: ("c",)}


def test_a_text_beside_lists_is_one_hint_without_quotes() -> None:
    assert hints_of_column(stored('say "x"', ["a"], "", None), [0, 1, 2, 3], "hint") == {0: ('say "x"',), 1: ("a",)}


def test_a_text_is_json_only_where_it_is_a_list_of_texts_or_the_whole_column_is() -> None:
    texts = ['"quoted"', "[1, 2]", "7", "null", "{}", "[x]", '["a", "b"]', "plain"]
    found = hints_of_column(stored(*texts), range(8), "hint")
    assert found == {index: (text,) for index, text in enumerate(texts)} | {6: ("a", "b")}
    assert hints_of_column(['"quoted"'], [0], "hint") == {0: ('"quoted"',)}


def test_hostile_texts_of_a_column_stay_as_they_are() -> None:
    texts = ["\0", "\u202e42\u202c", "[" * 2**20, "x" * 2**20, "{" * 10**5]
    assert hints_of_column(texts, range(5), "hint") == {index: (text,) for index, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (stored(None, 7), ["column 'help', row 5", "7 is no text; make it one, or a list of texts"]),
        ([*stored("a", None), True], ["row 7", "true is no text"]),
        (stored(["a"], ["b", 2]), ["row 5", "['b', 2] is no text"]),
        (stored(["a"], ["b", None]), ["row 5"]),
        (stored(["a"], {"text": "b"}), ["row 5", "{'text': 'b'} is no text"]),
        (stored({"text": "b"}), ["row 3"]),
        (stored([["a"]]), ["row 3"]),
        (["a", "b\ud800"], ["row 5", "character 2 of a text is half a surrogate pair"]),
        (["a", '["b", "\\ud800"]'], ["row 5", "character 1 of a text"]),
    ],
)
def test_other_values_of_a_column_are_refused_with_their_row(values: list[Any], words: list[str]) -> None:
    message = refusal(hints_of_column, values, [2, 4, 6][: len(values)], "help")
    assert message.startswith("column 'help', row ")
    assert all(word in message for word in words), message


# ---- hints of a file ------------------------------------------------------------------------------------------------


def test_rows_with_all_levels_and_rows_with_one_each(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "hints.jsonl",
        {"prompt_id": 3, "hint": "second", "level": 2},
        "",
        {"prompt_id": 0, "hints": ["a {b}", "", "\0\u202e"], "prompt": "zero", "note": 1},
        {"prompt_id": 3, "hint": "first", "level": 1, "hints": None, "prompt": None},
        {"prompt_id": 1, "hint": "only"},
    )
    expected = {0: ("a {b}", "\0\u202e"), 1: ("only",), 3: ("first", "second")}
    assert read_hints(path, PROMPTS) == expected


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "hints.parquet"
    rows = [{"prompt_id": 3, "hints": ["a", "b"], "prompt": PROMPTS[3]}, {"prompt_id": 1, "hints": None}]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert read_hints(path, PROMPTS) == {3: ("a", "b")}


def test_empty_hints_are_skipped(tmp_path: Path) -> None:
    rows = [{"prompt_id": 0, "hints": []}, {"prompt_id": 1, "hint": " "}, {"prompt_id": 3, "hints": ["", None, "\n"]}]
    assert read_hints(jsonl(tmp_path / "hints.jsonl", *rows), PROMPTS) == {}


def test_an_empty_level_counts_as_given(tmp_path: Path) -> None:
    rows = [{"prompt_id": 0, "hint": "", "level": 1}, {"prompt_id": 0, "hint": "b", "level": 2}]
    assert read_hints(jsonl(tmp_path / "hints.jsonl", *rows), PROMPTS) == {0: ("b",)}


def test_huge_hint_is_read(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "hints.jsonl", {"prompt_id": 0, "hint": "{" * 2**20})
    assert read_hints(path, PROMPTS) == {0: ("{" * 2**20,)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt_id": 2, "hint": "a"}], ["row 1", "prompt_id 2 is none of the 3 training prompts", "remove the row"]),
        ([{"prompt_id": -1, "hint": "a"}], ["prompt_id -1"]),
        ([{"prompt_id": "0", "hint": "a"}], ["`prompt_id` is '0'; it must be a whole number"]),
        ([{"prompt_id": True, "hint": "a"}], ["`prompt_id` is true"]),
        ([{"prompt_id": 1.0, "hint": "a"}], ["`prompt_id` is 1.0"]),
        ([{"prompt_id": None, "hint": "a"}], ["`prompt_id` is null"]),
        ([{"hint": "a"}], ["row 1 has no column `prompt_id`", "its columns are hint"]),
        ([{"promptid": 0, "hint": "a"}], ["did you mean 'promptid'?"]),
        ([{"prompt_id": 0, "hins": ["a"]}], ["has no column `hints` or `hint`", "did you mean 'hins'?"]),
        ([{"prompt_id": 0}], ["its columns are prompt_id"]),
        ([{"prompt_id": 0, "hints": "a"}], ["`hints` is 'a'", "name the column `hint`"]),
        ([{"prompt_id": 0, "hints": {"1": "a"}}], ["make it a list of texts"]),
        ([{"prompt_id": 0, "hints": ["a", 1]}], ["`hints` holds 1; it must be text"]),
        ([{"prompt_id": 0, "hint": ["a"]}], ["`hint` holds ['a']; it must be text"]),
        ([{"prompt_id": 0, "hint": 7}], ["`hint` holds 7"]),
        ([{"prompt_id": 0, "hint": "\ud800"}], ["half a surrogate pair"]),
        ([{"prompt_id": 0, "hint": "a", "level": "1"}], ["`level` is '1'; it must be a whole number"]),
        ([{"prompt_id": 0, "hint": "a", "level": 0}], ["`level` is 0; count levels from 1"]),
        ([{"prompt_id": 0, "hint": "a", "hints": ["b"]}], ["both `hints` and `hint`"]),
        ([{"prompt_id": 0, "level": 1, "hints": ["b"]}], ["both `hints` and `level`"]),
        ([{"prompt_id": 0, "hint": "a", "level": 2}], ["row 1", "level 2 but none of level 1"]),
        (
            [{"prompt_id": 0, "hint": "a", "level": 3}, {"prompt_id": 0, "hint": "b", "level": 1}],
            ["row 1", "prompt_id 0 has a hint of level 3 but none of level 2", "without a gap"],
        ),
        ([{"prompt_id": 0, "hint": "a", "level": 10**12}], ["none of level 1"]),
        ([{"prompt_id": 0, "hint": "a", "prompt": "one"}], ["`prompt` is 'one'", "is 'zero'", "made for this data"]),
        ([{"prompt_id": 0, "hint": "a", "prompt": 0}], ["`prompt` is 0"]),
        (['{"prompt_id": 0, "hint": "a"}', "{oops"], ["line 2: not valid JSON"]),
        (["[1]"], ["line 1: not a JSON object"]),
        ([], ["is empty"]),
    ],
)
def test_mistake_in_a_file_is_named_with_file_row_and_remedy(rows: list[Any], words: list[str], tmp_path: Path) -> None:
    path = jsonl(tmp_path / "hints.jsonl", *rows)
    message = refusal(read_hints, path, PROMPTS)
    assert message.startswith(str(path))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"hint": "a"}, {"hint": "a"}),
        ({"hint": "a"}, {"hint": "b", "level": 1}),
        ({"hint": "a", "level": 2}, {"hint": "b", "level": 2}),
        ({"hints": ["a"]}, {"hints": ["a"]}),
        ({"hints": ["a"]}, {"hint": "b", "level": 2}),
        ({"hint": "b", "level": 2}, {"hints": ["a"]}),
        ({"hints": []}, {"hints": ["a"]}),
    ],
)
def test_second_hint_of_a_level_is_refused(first: dict[str, Any], second: dict[str, Any], tmp_path: Path) -> None:
    other = {"prompt_id": 1, "hint": "x"}
    path = jsonl(tmp_path / "hints.jsonl", {"prompt_id": 0} | first, other, {"prompt_id": 0} | second)
    message = refusal(read_hints, path, PROMPTS)
    assert message.startswith(f"{path}, row 3: prompt_id 0 has its hint in row 1 already; remove one")


def test_files_that_are_not_there_or_not_readable(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt_id": 0, "hint": "\xff"}')
    (tmp_path / "hints.csv").write_text("prompt_id,hint\n0,a\n")
    for name, words in (
        ("none.jsonl", "does not exist"),
        ("folder.jsonl", "is no file"),
        ("bad.parquet", "not a readable parquet file"),
        ("bad.jsonl", "not UTF-8 at byte 26"),
        ("hints.csv", "must end in .jsonl or .parquet"),
    ):
        for read in (read_hints, read_completions):
            message = refusal(read, tmp_path / name, PROMPTS)
            assert str(tmp_path / name) in message
            assert words in message


# ---- completions of a file ------------------------------------------------------------------------------------------


def test_several_completions_of_a_prompt_in_their_order(tmp_path: Path) -> None:
    rows = [{"prompt_id": i, "completion": text} for i, text in ((3, "b"), (0, "x {y}"), (3, "a"), (3, "b"), (1, " "))]
    assert read_completions(jsonl(tmp_path / "t.jsonl", *rows), [0, 1, 3]) == {3: ("b", "a", "b"), 0: ("x {y}",)}
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert read_completions(tmp_path / "t.parquet", {0, 1, 3}) == {3: ("b", "a", "b"), 0: ("x {y}",)}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt_id": 2, "completion": "a"}, "prompt_id 2 is none of"),
        ({"prompt_id": "0", "completion": "a"}, "`prompt_id` is '0'"),
        ({"prompt_id": 0, "complete": "a"}, "has no column `completion`; did you mean 'complete'?"),
        ({"prompt_id": 0, "completion": ["a"]}, "`completion` holds ['a']; it must be text"),
        ({"prompt_id": 0, "completion": "\ud800"}, "`completion`: character 1 of a text is half a surrogate pair"),
    ],
)
def test_mistake_in_a_completion_is_named(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", row)
    message = refusal(read_completions, path, PROMPTS)
    assert message.startswith(f"{path}, row 1")
    assert words in message


# ---- writing --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again_and_replaces_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hints.jsonl"
    hints = {3: ("a\n\u2028b", "\0 {c}"), 0: ("x" * 2**20,)}
    write_hints(path, {1: ("old",)}, PROMPTS)
    write_hints(path, hints, PROMPTS)
    assert read_hints(path, PROMPTS) == hints
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [(row["prompt_id"], row["prompt"]) for row in rows] == [(0, "zero"), (3, PROMPTS[3])]
    assert [each.name for each in path.parent.iterdir()] == ["hints.jsonl"]


def test_written_prompt_with_half_a_surrogate_pair_is_the_same_when_read(tmp_path: Path) -> None:
    write_hints(tmp_path / "hints.jsonl", {0: ("a",)}, {0: "\ud800"})
    assert read_hints(tmp_path / "hints.jsonl", {0: "\ud800"}) == {0: ("a",)}


def test_failed_writing_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "hints.jsonl"
    write_hints(path, {0: ("old",)}, PROMPTS)
    with pytest.raises(KeyError):
        write_hints(path, {0: ("new",), 2: ("unknown",)}, PROMPTS)
    assert read_hints(path, PROMPTS) == {0: ("old",)}
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        write_hints(tmp_path / "folder.jsonl", {0: ("new",)}, PROMPTS)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder.jsonl", "hints.jsonl"]


def test_writing_under_another_suffix_is_refused(tmp_path: Path) -> None:
    assert "end the name in .jsonl" in refusal(write_hints, tmp_path / "hints.parquet", {}, PROMPTS)
