"""JSON and schemas."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards._item import Status
from rewards.json_schema import json_schema

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
GOOD, BAD = '{"name": "Ada"}', '{"nome": "Ada"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, 1.0),
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Ada", "age": 36.0}', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "age": NaN}', 0.0),
        ('{"name": "Ada", "born": 1815}', 0.0),
        ("{'name': 'Ada'}", 0.0),
        (f"{GOOD} done", 0.0),
        (f"```json\n{GOOD}\n```", 1.0),
        (f"```JSON\n{GOOD}\n```", 1.0),
        (f"Here:\n```\n{GOOD}\n```\nDone.", 1.0),
        (f"```json\n{BAD}\n```\n```json\n{GOOD}\n```", 1.0),
        (f"```json\n{GOOD}\n```\n```json\n{BAD}\n```", 0.0),
        (f"```json\n{GOOD}\n```\n```python\nprint(1)\n```", 1.0),
        (f"```json\n{GOOD}", 0.0),
        (f"{BAD} <answer>{GOOD}</answer>", 1.0),
        (f"<answer>```json\n{GOOD}\n```</answer>", 1.0),
        (f"<answer>x</answer>\n```json\n{GOOD}\n```", 0.0),
        ("[" * 100_000, 0.0),
        ("[" * 900 + "]" * 900, 0.0),
        (f'{{"name": "Ada", "age": {"9" * 5000}}}', 0.0),
    ],
)
def test_json_is_found_and_validated(text: str, expected: float) -> None:
    assert json_schema([text], json_schema=[PERSON]) == [expected]
    assert json_schema([text], json_schema=[json.dumps(PERSON)]) == [expected]
    assert json_schema([text], schema=PERSON) == [expected]


def test_column_comes_before_the_option() -> None:
    assert json_schema(["3"], json_schema=[{"type": "integer"}], schema=PERSON) == [1.0]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "text"}, "invalid"),
        ("{", "invalid"),
        (["a"], "must be an object"),
        ({"$ref": "https://example.com/schema.json"}, "refers to what is not in it"),
        ({"$ref": "#/nowhere"}, "refers to what is not in it"),
    ],
)
def test_schema_at_fault_has_no_verdict(schema: Any, reason: str) -> None:
    verdict = json_schema.judge(GOOD, schema)
    assert (verdict.value, verdict.status) == (None, Status.ERROR)
    assert reason in verdict.reason


def test_reference_to_another_document_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **_: fetched.append(args))
    assert json_schema([GOOD], json_schema=[{"$ref": "https://example.com/schema.json"}]) == [None]
    assert fetched == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]"])
def test_what_only_python_reads_is_not_json(text: str) -> None:
    assert json_schema.judge(text, {}).status is Status.NO_ANSWER


def test_schema_keeps_its_own_draft() -> None:
    # In draft 4 exclusiveMinimum is a truth value, since draft 6 a number.
    draft = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert json_schema(["3", "4"], json_schema=[draft, draft]) == [0.0, 1.0]
    assert json_schema(["3"], json_schema=[{"minimum": 3, "exclusiveMinimum": True}]) == [None]


def test_recursive_schema_and_deep_value() -> None:
    schema = {"type": "array", "items": {"$ref": "#"}}
    assert json_schema(["[[[]]]", "[[[1]]]"], json_schema=[schema] * 2) == [1.0, 0.0]
    assert json_schema(["[" * 700 + "]" * 700], json_schema=[schema]) == [0.0]


def test_no_schema_is_named() -> None:
    verdict = json_schema.judge(GOOD)
    assert verdict.value is None
    assert "add a column `json_schema` or `args: {schema" in verdict.reason


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert json_schema([text], schema={"type": "object"})[0] in (0.0, 1.0)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_any_value_written_by_json_is_read(value: Any) -> None:
    assert json_schema([json.dumps(value)], schema={"const": value}, tag=None) == [1.0]
