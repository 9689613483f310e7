"""`rlvr rewards score` judges a file and writes all verdicts or nothing."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from rlvr.cli import app

ROWS = [
    {"completion": "<answer>3</answer>", "answer": "3"},
    {"completion": [{"role": "assistant", "content": "<answer>4</answer>"}], "answer": "3"},
    {"completion": "nothing \ud800", "answer": "3"},
    {"completion": "<answer>3</answer>", "answer": ""},
]


def score(folder: Path, name: str, lines: list[str], *arguments: str) -> Result:
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    output = str(folder / "verdicts.parquet")
    command = ["rewards", "score", name, str(folder / "rows.jsonl"), "--output", output, *arguments]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def verdicts(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "verdicts.parquet").to_pylist()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_row_has_its_verdict(tmp_path: Path, workers: str) -> None:
    result = score(tmp_path, "exact", [json.dumps(row) for row in ROWS], "--workers", workers)
    assert result.exit_code == 0, result.output
    found = verdicts(tmp_path)
    assert [each["row"] for each in found] == [1, 2, 3, 4]
    assert [each["value"] for each in found] == [1.0, 0.0, 0.0, None]
    assert [each["status"] for each in found] == ["correct", "wrong", "no_answer", "error"]
    assert found[2]["completion"] == "nothing ?"
    assert "unscorable" in result.stdout
    assert "25.0%" in result.stdout
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_reward_of_groups_sees_the_whole_file(tmp_path: Path) -> None:
    texts = ["<answer>7</answer>", "<answer>8</answer>", "<answer>7</answer>"]
    rows = [{"completion": text, "prompt": "p", "prompt_id": 1} for text in texts]
    result = score(tmp_path, "majority", [json.dumps(row) for row in rows])
    assert result.exit_code == 0, result.output
    assert [each["value"] for each in verdicts(tmp_path)] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        (['{"completion": "x", "answer": "3"}', '{"answer": "3"}'], [], "row 2: has no `completion`"),
        (['{"completion": "x", "answer": "3"}', "{bad"], [], "line 2: not valid JSON"),
        (['{"completion": "x"}'], [], "needs 'answer'"),
        ([], [], "is empty"),
        (['{"completion": "x", "answer": "3"}'], ["--args", "{tagg: x}"], "tagg"),
    ],
)
def test_mistakes_end_in_one_sentence_and_write_nothing(
    tmp_path: Path, lines: list[str], arguments: list[str], expected: str
) -> None:
    result = score(tmp_path, "exact", lines, *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert expected in line
    assert not (tmp_path / "verdicts.parquet").exists()
