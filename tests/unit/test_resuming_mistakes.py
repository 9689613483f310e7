"""What a run cannot go on from ends with one sentence and exit code 2, and leaves the run as it is."""

import json
import os
import pwd
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rlvr.checkpointing import folders
from rlvr.cli import app
from rlvr.reporting.recorder import read_metrics
from tests.conftest import ROOT
from tests.unit.test_cli import recipe, train  # noqa: F401 - a fixture

SAVING = ["trainer.save_steps=1"]
VALIDATION = ["evaluation.validation.dev={dataset: rows.jsonl, limit: 4}", "evaluation.num_samples=2"]
VALIDATION += ["evaluation.k=[1,2]", "evaluation.sets.test={dataset: other.jsonl}"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(recipe: Path, *arguments: str) -> str:  # noqa: F811
    """The message of a resumption that changes nothing."""
    before = contents(recipe.parent / "run")
    result = train(recipe, "--resume", *SAVING, *arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert contents(recipe.parent / "run") == before
    return result.stderr


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def run(recipe: Path) -> Path:  # noqa: F811
    """A finished run with checkpoints of steps 1 and 2."""
    result = train(recipe, *SAVING)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return recipe.parent / "run"


def test_another_recipe_is_refused_with_every_difference(run: Path, recipe: Path) -> None:  # noqa: F811
    message = refused(recipe, "trainer.learning_rate=0.5", "algorithm.clip_high=0.3", "trainer.seed=3")
    lines = message.strip().splitlines()
    assert lines[0] == f"error: {run} was started with another recipe; resume it unchanged:"
    assert lines[1:] == [
        "  algorithm.clip_high: 0.28 is now 0.3",
        "  trainer.learning_rate: 0.001 is now 0.5",
        "  trainer.seed: 42 is now 3",
    ]


def test_recipe_of_an_earlier_version_has_the_defaults_of_what_is_new(run: Path, recipe: Path) -> None:  # noqa: F811
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    del kept["checkpoints"], kept["evaluation"]["every"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(kept))
    kept["trainer"]["vllm_server_host"] = "another"  # a job that is started again may find its server elsewhere
    (run / "recipe.yaml").write_text(yaml.safe_dump(kept))
    assert train(recipe, "--resume", *SAVING).exit_code == 0
    (run / "recipe.yaml").write_text(yaml.safe_dump(kept | {"magic": True}))
    assert "unknown key" in refused(recipe)


def test_other_numbers_of_processes_and_engines_are_refused(run: Path, recipe: Path) -> None:  # noqa: F811
    marker = run / "checkpoint-2" / folders.MARKER
    edit(marker, num_processes=4)
    assert "checkpoint-2 was written by 4 processes and this is a run of 1," in refused(recipe)
    edit(marker, num_processes=1, engine="FSDP")
    assert "checkpoint-2 was written under FSDP and this run is under NO; use the accelerate config" in refused(recipe)


def test_other_versions_are_refused_unless_allowed(run: Path, recipe: Path) -> None:  # noqa: F811
    marker = run / "checkpoint-2" / folders.MARKER
    versions = folders.read_marker(marker.parent)["versions"]
    edit(marker, versions=versions | {"trl": "0.1.2", "rlvr": "0.0.1", "datasets": "1"})
    message = refused(recipe)
    assert f"checkpoint-2 was written with trl 0.1.2 (now {versions['trl']}); install" in message
    assert "--other-versions" in message
    assert train(recipe, "--resume", "--other-versions", *SAVING).exit_code == 0


def test_damaged_checkpoint_is_passed_over_for_the_one_before(run: Path, recipe: Path) -> None:  # noqa: F811
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"short")
    (run / folders.SAVING / "checkpoint-3").mkdir(parents=True)
    whole = read_metrics(run)
    result = train(recipe, "--resume", *SAVING)
    assert result.exit_code == 0, result.output + repr(result.exception)
    output = result.output.replace("\n", "")
    assert "checkpoint-2 is passed over: optimizer.pt has 5 bytes instead of" in output
    assert f"going on from {run}/checkpoint-1" in output
    assert folders.find_newest(run) == folders.Found(run / "checkpoint-2", [])
    assert not (run / folders.SAVING).exists()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2]  # the last sums up the run
    assert [record["reward/mean"] for record in read_metrics(run)] == [record["reward/mean"] for record in whole]


@pytest.mark.parametrize("seed", [1, 2])
def test_progress_that_cannot_be_read_is_named(seed: int, run: Path, recipe: Path) -> None:  # noqa: F811
    path = run / "checkpoint-1" / "progress-00000.pt"
    size = path.stat().st_size
    path.write_bytes(random.Random(seed).randbytes(size))
    (run / "checkpoint-2" / folders.MARKER).unlink()
    result = train(recipe, "--resume", *SAVING)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "progress-00000.pt cannot be read" in result.stderr


def test_run_that_was_killed_before_its_first_checkpoint_begins_anew(run: Path, recipe: Path) -> None:  # noqa: F811
    for step in (1, 2):
        (run / f"checkpoint-{step}" / folders.MARKER).unlink()
    whole = read_metrics(run)
    result = train(recipe, "--resume", *SAVING)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "no checkpoint is whole: beginning anew" in result.output
    assert [record["loss/policy"] for record in read_metrics(run)] == [record["loss/policy"] for record in whole]


@contextmanager
def file_sizes_below(num_bytes: int) -> Iterator[None]:
    """Writing beyond fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [8_000, 30_000])  # within the weights, and within the optimiser's state
def test_full_disk_keeps_the_checkpoint_before(num_bytes: int, run: Path, recipe: Path) -> None:  # noqa: F811
    (run / "checkpoint-2" / folders.MARKER).unlink()
    before = contents(run / "checkpoint-1")
    with file_sizes_below(num_bytes):
        result = train(recipe, "--resume", *SAVING)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert "The checkpoint of step 2 could not be written (" in result.stderr
    assert f"{run}/checkpoint-1 is whole: make room, then go on from it with --resume." in result.stderr
    assert contents(run / "checkpoint-1") == before
    assert folders.find_newest(run).newest == run / "checkpoint-1"
    assert train(recipe, "--resume", *SAVING).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="root gives the permissions of another user up; others cannot")
def test_folder_that_cannot_be_written_is_refused(recipe: Path, tmp_path: Path) -> None:  # noqa: F811
    nobody = pwd.getpwnam("nobody").pw_uid
    program = (
        "import os, sys\nfrom rlvr.config import load_recipe\n"
        "from rlvr.errors import UserError\nfrom rlvr.run_directory import claim\n"
        f"loaded = load_recipe('recipes/quickstart.yaml', ['trainer.output_dir=/proc/run'])\nos.setuid({nobody})\n"
        "try: claim(loaded, False)\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "/proc cannot be written to; choose another trainer.output_dir" in done.stderr, done.stderr


def test_output_directory_that_is_a_file_is_refused(recipe: Path) -> None:  # noqa: F811
    (recipe.parent / "run").write_text("mine")
    result = train(recipe)
    assert result.exit_code == 2
    assert "run is a file; choose another trainer.output_dir." in result.stderr


# ---- evaluation while a run goes on ---------------------------------------------------------------------------------


def test_evaluation_on_a_schedule_changes_nothing_else_and_keeps_the_best(recipe: Path) -> None:  # noqa: F811
    rows = (recipe.parent / "rows.jsonl").read_text().splitlines()
    (recipe.parent / "rows.jsonl").write_text("\n".join(rows[6:]))
    (recipe.parent / "other.jsonl").write_text("\n".join(rows[:6]))
    options = [*VALIDATION, *SAVING, "trainer.max_steps=4", "trainer.learning_rate=0.05"]
    runs = []
    for name, more in (
        ("plain", []),
        ("evaluated", ["evaluation.every=1", "checkpoints={keep_last: 1, keep_best: 1}"]),
    ):
        runs.append(recipe.parent / name)
        result = train(recipe, *options, *more, f"trainer.output_dir={runs[-1]}")
        assert result.exit_code == 0, result.output + repr(result.exception)
    plain, evaluated = (read_metrics(each) for each in runs)
    assert len(plain) == 4
    for one, other in zip(plain, evaluated, strict=True):
        same = {name for name in one if not name.startswith(("time/", "step_time", "verify/cache"))}
        assert {name: other[name] for name in same} == {name: one[name] for name in same}
        added = {"eval/test/pass@1", "eval/test/pass@2", "eval/test/greedy", "eval/dev/pass@1"}
        assert added <= set(other)
    scores = {}
    for step in (1, 2, 3, 4):
        results = json.loads((runs[1] / "evaluations" / f"step-{step:06d}.json").read_text())
        scores[step] = next(each["estimates"]["pass@1"]["value"] for each in results if each["name"] == "dev")
        assert evaluated[step - 1]["eval/dev/pass@1"] == scores[step]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert set(folders.steps_of(runs[1])) == {best, 4}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["checkpoints.keep_best=1"],
            "checkpoints.keep_best: needs held-out prompts by which policies are compared",
        ),
        (
            [*VALIDATION, "checkpoints={keep_best: 1, best_by: pass@8}", "evaluation.every=5"],
            "checkpoints.best_by: 'pass@8' is not measured by the evaluation; did you mean 'pass@2'",
        ),
        (
            [*VALIDATION, "checkpoints.keep_best=1", "evaluation.every=3", "trainer.save_steps=5"],
            "checkpoints.keep_best: compares checkpoints by evaluations, which are every 3 steps",
        ),
        (
            [*VALIDATION, "checkpoints.keep_best=1", "evaluation.every=3", "trainer.save_strategy=epoch"],
            "with trainer.save_strategy='epoch'",
        ),
        (["trainer.save_total_limit=2"], "trainer.save_total_limit: cannot be set here; use checkpoints.keep_last"),
    ],
)
def test_mistakes_in_what_is_kept(overrides: list[str], message: str, recipe: Path) -> None:  # noqa: F811
    result = CliRunner().invoke(app, ["train", str(recipe), "--dry-run", *overrides])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
