"""`rlvr rewards check` passes every shipped reward, and says what is wrong with a faulty one."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rewards import REGISTRY
from rlvr.cli import app
from rlvr.verification.examples import EXAMPLES
from tests.rewards.conftest import classifier, language_model  # noqa: F401 - fixtures

FAULTY = """
import random

from rewards._item import Judgement, graded, item_reward

def plain(completions, answer, **_):
    texts = [c if isinstance(c, str) else ((c[-1]["content"] or "") if c else "") for c in completions]
    return [float(f"<answer>{a}</answer>" in t) for t, a in zip(texts, answer)]

def no_messages(completions, answer, **_):
    return [float(a in c.strip()) for c, a in zip(completions, answer)]

def generous(completions, **_):
    return [1.0 for _ in completions]

def too_few(completions, **_):
    return [1.0]

seen = []
def remembers(completions, **_):
    seen.append(1)
    return [1.0 + len(seen) for _ in completions]

def place(completions, **_):
    return [1.0 + i for i, _ in enumerate(completions)]

def needs_level(completions, *, level, **_):
    return [1.0 for _ in completions]

@item_reward
def good(text: str, answer: str) -> Judgement:
    return graded(float(text.strip() == answer))

@item_reward
def breaks_on_nul(text: str, answer: str) -> Judgement:
    if "\\0" in text or len(text) > 100_000:
        raise SystemExit(3)
    return graded(float(text.strip() == answer))

@item_reward
def undecided(text: str, answer: str) -> Judgement:
    return graded(1.0) if text == answer else Judgement(None, graded(0.0).status)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(FAULTY)
    return tmp_path / "own.py"


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["rewards", "check", *arguments], env={"COLUMNS": "200"})


def failures(result: Result) -> list[str]:
    return [line.split("│")[1].strip() for line in result.stdout.splitlines() if "FAIL" in line]


def test_every_registered_reward_has_an_example_and_only_those() -> None:
    assert set(EXAMPLES) == set(REGISTRY)


@pytest.mark.parametrize("name", REGISTRY)
def test_shipped_rewards_pass(name: str, request: pytest.FixtureRequest) -> None:
    fixture = {"rm": "classifier", "reference_probability": "language_model"}.get(name)
    arguments = {"code": ["--args", "{backend: unsafe_subprocess}"]}.get(name, [])
    if fixture:
        refused = check(name)
        assert refused.exit_code == 2
        assert "--args" in refused.stderr
        arguments = ["--args", json.dumps({"model": request.getfixturevalue(fixture)})]
    result = check(name, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "deterministic" in result.stdout


@pytest.mark.parametrize("name", ["exact", "numeric"])
def test_without_tags(name: str) -> None:
    result = check(name, "--args", "{tag: null}")
    assert result.exit_code == 0, result.output
    assert "<answer>" not in result.stdout


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("plain", []),
        ("good", []),
        ("no_messages", ["messages"]),
        ("generous", ["empty"]),
        ("remembers", ["empty", "messages", "deterministic", "in another order"]),
        ("place", ["empty", "in another order"]),
        ("undecided", ["empty", "messages", "deterministic", "in another order"]),
    ],
)
def test_own_rewards(own: Path, function: str, expected: list[str]) -> None:
    result = check(f"{own}:{function}")
    assert result.exit_code == bool(expected), result.output + repr(result.exception)
    looked_at = ("messages", "empty", "deterministic", "in another order")
    assert [name for name in failures(result) if name in looked_at] == expected


def test_what_kills_a_judgement_is_told(own: Path) -> None:
    result = check(f"{own}:breaks_on_nul")
    assert "SystemExit" in result.stdout or "error" in result.stdout, result.stdout


def test_broken_contract_fails_the_check(own: Path) -> None:
    result = check(f"{own}:too_few")
    assert result.exit_code == 1
    assert failures(result)


def test_row_from_a_file(own: Path, tmp_path: Path) -> None:
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"prompt": "p", "answer": "7", "completion": "so <answer>7</answer>"}) + "\n")
    result = check(f"{own}:plain", "--row", str(row))
    assert result.exit_code == 0, result.output
    assert "so <answer>7</answer>" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["exat"], "exact"),
        (["exact", "--args", "{tagg: x}"], "tagg"),
        (["exact", "--args", "[1]"], "--args"),
        (["exact", "--args", "{"], "--args"),
        (["exact", "--row", "nowhere.jsonl"], "nowhere.jsonl"),
        (["OWN:needs_level"], "'level'"),
        (["code", "--row", "ROW"], "'tests'"),
    ],
)
def test_mistakes_end_in_one_sentence(own: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    row = tmp_path / "row.jsonl"
    row.write_text('{"answer": "7"}\n')
    result = check(*(each.replace("OWN", str(own)).replace("ROW", str(row)) for each in arguments))
    assert result.exit_code == 2, result.output + repr(result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
