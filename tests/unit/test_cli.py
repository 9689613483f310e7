"""Bad input ends with one sentence and exit code 2, and nothing is overwritten; Ctrl-C loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from rlvr.cli import app
from tests.conftest import ROOT, WORDS, tiny_model, tiny_tokenizer

ROWS = [{"prompt": f"{a} {b}", "answer": a} for a in WORDS[3:9] for b in WORDS[3:9]]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that trains the tiny policy for two steps."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "my_reward.py").write_text(
        "def starts_right(completions, answer, **_):\n"
        "    return [float(c.split()[:1] == [a]) for c, a in zip(completions, answer)]\n"
        "def too_few(completions, **_):\n    return [1.0]\n"
        "def words(completions, **_):\n    return ['yes' for _ in completions]\n"
        "def undecided(completions, **_):\n    return [None for _ in completions]\n"
    )
    content: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"dataset": "rows.jsonl"}},
        "rewards": {"functions": ["./my_reward.py:starts_right"]},
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
        },
        "report": {"to": ["none"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(recipe: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", str(recipe), *arguments])


@pytest.fixture
def folder_before(recipe: Path) -> Iterator[None]:
    """Fails the test when a refused command left something behind."""
    before = sorted(recipe.parent.rglob("*"))
    yield
    assert sorted(p for p in recipe.parent.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.usefixtures("folder_before")
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algorithm.clip_hgh=0.3", "clip_high"),
        ("trainer.num_generation=4", "num_generations"),
        ("trainer.max_steps=many", "max_steps"),
        ("trainer.num_generations=3", "num_generations"),
        ("model=/no/such/folder", "/no/such/folder"),
        ("model=builtin://other", "builtin://starter"),
        ("data.train.dataset=missing.jsonl", "missing.jsonl"),
        ("data.max_prompt_length=1", "max_prompt_length"),
        ("data.train.columns.answer=solution", "solution"),
        ("rewards.functions.0=exat", "exact"),
        ("rewards.functions.0=./my_reward.py:nothing", "nothing"),
        ("rewards.functions.0=./absent.py:f", "absent.py"),
        ("algorithm.preset=dapoo", "dapo"),
        ("trainer.steps_per_generation=3", "steps_per_generation"),
        ("report.to=[tensorboard]", "pip install tensorboard"),
        ("model=someone/not-on-this-machine", "someone/not-on-this-machine"),
    ],
)
def test_refused_before_anything_is_written(recipe: Path, override: str, expected: str) -> None:
    extra = ["trainer.gradient_accumulation_steps=2"] if "steps_per_generation" in override else []
    result = train(recipe, override, *extra)
    assert result.exit_code == 2, result.output + repr(result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert expected in lines[0]


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    result = train(tmp_path / "nowhere.yaml")
    assert result.exit_code == 2
    assert "nowhere.yaml" in result.stderr


@pytest.mark.parametrize("rows", ["", json.dumps({"prompt": "a b"}), json.dumps({"prompt": "", "answer": "a"})])
def test_unusable_rows_are_refused(recipe: Path, rows: str) -> None:
    (recipe.parent / "rows.jsonl").write_text(rows)
    result = train(recipe)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "rows.jsonl" in result.stderr
    assert not (recipe.parent / "run").exists()


def test_row_whose_reference_does_not_score_stops_the_run_or_is_dropped(recipe: Path) -> None:
    rows = [{"prompt": "a b", "answer": answer} for answer in ("1", "one", "3")]
    (recipe.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = train(recipe, "rewards.functions.0=numeric")
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "rows.jsonl: the reference of 1 of 3 rows does not score as correct with 'numeric'" in result.stderr
    assert "row 2: 'one'" in result.stderr
    assert not (recipe.parent / "run").exists()
    dropped = train(recipe, "rewards.functions.0=numeric", "data.self_check=drop")
    assert dropped.exit_code == 0, dropped.output + repr(dropped.exception)
    assert "row 2: 'one'" in dropped.stdout
    trained_on = [pq.read_table(each).to_pylist() for each in (recipe.parent / "run" / "completions").iterdir()]
    assert {row["prompt_id"] for rows in trained_on for row in rows} == {0, 2}


@pytest.mark.parametrize(
    ("function", "expected"), [("too_few", "8"), ("words", "yes"), ("undecided", "max_unscorable")]
)
def test_broken_reward_stops_the_run_with_its_name(recipe: Path, function: str, expected: str) -> None:
    result = train(recipe, f"rewards.functions.0=./my_reward.py:{function}")
    assert result.exit_code == (1 if function == "undecided" else 2), result.output + repr(result.exception)
    assert function in result.stderr
    assert expected in result.stderr
    log = (recipe.parent / "run/ranks/rank-0/log.txt").read_text()
    assert "ended at step 0 in 'verify'\nTraceback" in log
    assert result.stderr.removeprefix("error: ").strip() in log


def test_output_directory_of_another_run_is_kept(recipe: Path) -> None:
    assert train(recipe).exit_code == 0
    kept = {path: path.read_bytes() for path in (recipe.parent / "run").rglob("*") if path.is_file()}
    result = train(recipe)
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    changed = train(recipe, "--resume", "trainer.learning_rate=1e-2")
    assert changed.exit_code == 2
    assert "learning_rate" in changed.stderr
    assert {path: path.read_bytes() for path in (recipe.parent / "run").rglob("*") if path.is_file()} == kept


def test_directory_with_foreign_files_is_refused(recipe: Path) -> None:
    (recipe.parent / "run").mkdir()
    (recipe.parent / "run" / "thesis.tex").write_text("mine")
    result = train(recipe)
    assert result.exit_code == 2
    assert sorted(p.name for p in (recipe.parent / "run").iterdir()) == ["thesis.tex"]


def test_run_leaves_what_it_promises(recipe: Path) -> None:
    options = ["evaluation.sets.heldout.dataset=rows.jsonl", "evaluation.num_samples=2", "evaluation.k=[1,2]"]
    result = train(recipe, *options, "watch.on_nonfinite=skip")
    assert result.exit_code == 0, result.output + repr(result.exception)
    run = recipe.parent / "run"
    expected = ["completions/step-000001.parquet", "evaluations/after.json", "evaluations/before.json", "run.json"]
    expected += [
        "learning_curve.png",
        "metrics.jsonl",
        "policy/model.safetensors",
        "policy/tokenizer.json",
        "ranks/rank-0/log.txt",
        "recipe.yaml",
        "report.html",
    ]
    assert [name for name in expected if not (run / name).exists()] == []
    heartbeat = json.loads((run / "ranks/rank-0/heartbeat.json").read_text())
    assert (heartbeat["status"], heartbeat["step"]) == ("finished", 2)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step.get("watch/skipped_steps") for step in steps] == [0.0, 0.0, None]  # the last line sums up the run
    assert "pass@1" in result.output
    assert str(run / "policy") in result.output.replace("\n", "")
    assert str(run / "report.html") in result.output.replace("\n", "")
    kept = pq.read_table(run / "completions" / "step-000001.parquet")["token_logprob"]
    assert len(kept) - kept.null_count == 2


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe: Path) -> None:
    result = train(recipe, "--dry-run", "trainer.learning_rate=3e-5")
    assert result.exit_code == 0
    resolved = yaml.safe_load(result.output)
    assert resolved["trainer"]["learning_rate"] == pytest.approx(3e-5)
    assert resolved["algorithm"]["clip_high"] == pytest.approx(0.28)
    assert not (recipe.parent / "run").exists()


def test_ctrl_c_saves_a_checkpoint_and_the_run_goes_on(recipe: Path) -> None:
    run = recipe.parent / "run"
    command = [sys.executable, "-m", "rlvr.cli", "train", str(recipe), "trainer.max_steps=400"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "--resume" in stderr
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 1 <= step < 400
    # The advised command as it stands: the overrides of the first one must not be needed again.
    advised = stderr.rsplit("rlvr ", 1)[1].split()
    assert advised[0] == "train"
    resumed = CliRunner().invoke(app, advised)
    assert resumed.exit_code == 0, resumed.output + repr(resumed.exception)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 400
    assert next(s for s in steps if s > step) == step + 1


def test_validate_names_every_broken_recipe(recipe: Path) -> None:
    (recipe.parent / "broken.yaml").write_text("modl: x\n")
    result = CliRunner().invoke(app, ["recipes", "validate", str(recipe.parent)])
    assert result.exit_code == 2
    assert f"ok     {recipe}" in result.output
    assert "broken.yaml" in result.stderr


def test_doctor_reports_versions() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "torch" in result.output


def test_rewards_list_names_every_registered_reward() -> None:
    import rewards

    result = CliRunner().invoke(app, ["rewards", "list"])
    assert result.exit_code == 0
    assert set(rewards.REGISTRY) <= {line.split()[0] for line in result.output.splitlines()}
