"""`rlvr hints make`: the starter writes hints of its own format, and training reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.errors import DataError
from rlvr.guidance.hint_files import read_hints
from rlvr.guidance.making import make_hints

RECIPE = """\
model: builtin://starter
data:
  train: {dataset: "reasoning_gym://chain_sum?min_terms=10&max_terms=10&max_digits=1&seed=1&size=6"}
  template: "solve {metadata[expression]} ="
rewards: {functions: [reasoning_gym]}
guidance:
  rule: sage
  prompt_template: "{prompt} hint {hint}"
  hints:
    source: file
    file: hints.jsonl
    explain_template: null
    write_template: "level {level} hint for {metadata[expression]} answer {answer} ="
    refuse_sufficient: false
    refuse_answers: false
trainer: {num_generations: 4, per_device_train_batch_size: 4, gradient_accumulation_steps: 1, max_steps: 1}
report: {to: [none]}
"""


def test_the_starter_writes_hints_that_a_recipe_then_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    made = CliRunner().invoke(app, ["hints", "make", "r.yaml", "--levels", "2"])
    assert made.exit_code == 0, made.output
    assert "prompts with a hint" in made.output
    rows = [json.loads(line) for line in Path("hints.jsonl").read_text().splitlines()]
    assert {row["prompt_id"] for row in rows} == set(range(6))
    assert all(1 <= len(row["hints"]) <= 2 for row in rows)
    assert sum(len(row["hints"]) for row in rows) >= 10  # the starter's hints are in order nearly always
    assert not Path("hints.jsonl.part").exists()
    assert not Path("runs").exists()
    trained = CliRunner().invoke(app, ["train", "r.yaml", "trainer.output_dir=run"])
    assert trained.exit_code == 0, trained.output
    (record,) = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines() if "guidance" in line]
    assert record["guidance/needed_frac"] in (0.0, 1.0)
    looked_at = Path("run/hints.jsonl")
    assert looked_at.exists() == (record["guidance/needed_frac"] == 1.0)


def test_a_recipe_without_a_rule_that_takes_hints_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    made = CliRunner().invoke(app, ["hints", "make", "r.yaml", "guidance=null"])
    assert made.exit_code == 2
    assert "guidance: no rule that takes hints" in made.output
    assert list(tmp_path.iterdir()) == [Path("r.yaml").absolute()]


def test_a_placeholder_that_the_data_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    made = CliRunner().invoke(app, ["hints", "make", "r.yaml", "guidance.hints.write_template='{anser} {answer}'"])
    assert made.exit_code == 2
    assert "did you mean 'answer'?" in made.output


# ---- the loop, with a store that answers by a script ----------------------------------------------------------------


class Scripted:
    """Stands in for the hint store: says which hints were asked for, and stops when told to."""

    def __init__(self, stop_after: int | None = None, without: tuple[tuple[int, int], ...] = ()) -> None:
        self.asked: list[tuple[int, int]] = []
        self.stop_after, self.without = stop_after, without

    def ready(self, wanted: Any, step: int) -> dict[int, str]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [(group.prompt_id, level) for group, level in wanted]
        return {g.prompt_id: f"hint {g.prompt_id} {n}" for g, n in wanted if (g.prompt_id, n) not in self.without}

    def flush(self) -> dict[str, int]:
        return {}


DATA = Dataset.from_list([{"prompt": f"q{i}", "prompt_id": i, "answer": "1"} for i in (0, 2, 3, 5)])
PROMPTS = {0: "q0", 2: "q2", 3: "q3", 5: "q5"}


def make(store: Any, output: Path, levels: int = 2, data: Dataset = DATA) -> Any:
    return make_hints(store, data, levels, output, chunk=3, writes=True, progress=lambda done, total: None)


def test_an_interrupted_command_goes_on_where_it_was(tmp_path: Path) -> None:
    output, whole = tmp_path / "h.jsonl", tmp_path / "whole.jsonl"
    first = Scripted(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        make(first, output)
    assert not output.exists()
    with (tmp_path / "h.jsonl.part").open("a") as file:
        file.write('{"prompt_id": 5, "prom')  # killed while writing
    second = Scripted()
    make(second, output)
    make(Scripted(), whole)
    assert first.asked + second.asked == [(i, level) for level in (1, 2) for i in (0, 2, 3, 5)]
    assert output.read_text() == whole.read_text()
    assert read_hints(output, PROMPTS)[3] == ("hint 3 1", "hint 3 2")


def test_levels_end_before_the_first_that_is_missing(tmp_path: Path) -> None:
    counts = make(Scripted(without=((0, 1), (2, 2), (3, 2))), tmp_path / "h.jsonl", levels=3)
    found = read_hints(tmp_path / "h.jsonl", PROMPTS)
    assert found == {2: ("hint 2 1",), 3: ("hint 3 1",), 5: ("hint 5 1", "hint 5 2", "hint 5 3")}
    assert (counts["prompts with a hint"], counts["prompts without"], counts["hints"]) == (3, 1, 5)


def test_work_that_was_begun_for_other_data_is_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(Scripted(stop_after=3), tmp_path / "h.jsonl")
    other = Dataset.from_list([{"prompt": "other", "prompt_id": 0, "answer": "1"}])
    with pytest.raises(DataError, match="was begun for other data; remove it"):
        make(Scripted(), tmp_path / "h.jsonl", data=other)
