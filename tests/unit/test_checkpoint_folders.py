"""Checkpoints are whole or absent: what is published, what is passed over, what stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlvr.checkpointing import folders
from rlvr.checkpointing.retention import Retention, surplus, validation_scores
from rlvr.config.checkpoints import CheckpointsConfig


def write(run_dir: Path, step: int, text: str = "weights") -> Path:
    """A checkpoint of two files, published."""
    aside = run_dir / folders.SAVING / folders.name_of(step)
    (aside / "inner").mkdir(parents=True)
    (aside / "model.safetensors").write_text(text)
    (aside / "inner" / "shard").write_text("more")
    return folders.publish(run_dir, step, {"num_processes": 2})


def test_checkpoint_appears_with_the_list_of_its_files(tmp_path: Path) -> None:
    folder = write(tmp_path, 7)
    assert folder == tmp_path / "checkpoint-7"
    assert folders.read_marker(folder) == {
        "step": 7,
        "num_processes": 2,
        "files": {"inner/shard": 4, "model.safetensors": 7},
    }
    assert folders.flaw_of(folder) is None
    assert folders.find_newest(tmp_path) == folders.Found(folder, [])
    assert folders.step_of(folder) == 7


def test_one_that_is_being_written_is_none(tmp_path: Path) -> None:
    write(tmp_path, 3)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / folders.SAVING / "checkpoint-9")
    assert folders.find_newest(tmp_path).newest == tmp_path / "checkpoint-3"
    folders.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_newest_is_by_number_and_replaces_one_of_its_step(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    write(tmp_path, 100, "others")
    newest = folders.find_newest(tmp_path).newest
    assert newest is not None
    assert newest.name == "checkpoint-100"
    assert (newest / "model.safetensors").read_text() == "others"
    assert folders.steps_of(tmp_path) == [9, 10, 100]


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weigh")


def lose(folder: Path) -> None:
    (folder / "inner" / "shard").unlink()


def unmark(folder: Path) -> None:
    (folder / folders.MARKER).unlink()


def damage(folder: Path) -> None:
    (folder / folders.MARKER).write_text("{")


def empty(folder: Path) -> None:
    (folder / folders.MARKER).write_text("[]")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut, "model.safetensors has 5 bytes instead of 7"),
        (lose, "inner/shard is missing"),
        (unmark, "it has no complete.json, so it was not written to its end"),
        (damage, "its complete.json is damaged"),
        (empty, "its complete.json is damaged"),
    ],
)
def test_what_is_not_whole_is_passed_over_with_the_reason(
    harm: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    older, newer = write(tmp_path, 5), write(tmp_path, 6)
    harm(newer)
    assert folders.find_newest(tmp_path) == folders.Found(older, [f"{newer} is passed over: {reason}."])


def test_without_any_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert folders.find_newest(tmp_path) == folders.Found(None, [])


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "gone"),
    [
        (None, None, []),
        (1, None, [10, 20, 30, 40]),
        (2, None, [10, 20, 30]),
        (9, None, []),
        (None, 1, [10, 30, 40]),  # 20 is the best, 50 the newest
        (None, 2, [10, 40]),  # 20 and 30 are equally good, and better than 10
        (2, 1, [10, 30]),
        (1, 9, []),
    ],
)
def test_what_is_kept(keep_last: int | None, keep_best: int | None, gone: list[int]) -> None:
    scores = {10: 0.25, 20: 0.5, 30: 0.5, 40: 0.125, 50: 0.0}
    assert surplus([30, 10, 50, 20, 40], scores, keep_last, keep_best) == gone


def test_earlier_one_of_equal_scores_is_kept_and_one_without_a_score_is_not() -> None:
    assert surplus([1, 2, 3, 4], {1: 0.5, 2: 0.5}, None, 1) == [2, 3]
    assert surplus([1, 2, 3], {}, None, 2) == [1, 2]


def evaluation(run_dir: Path, step: int, **values: float) -> None:
    """Results of two validation sets and a test set, of which only the former count."""
    results = [
        {"role": "validation", "estimates": {"pass@1": {"value": values["first"]}}},
        {"role": "validation", "estimates": {"pass@1": {"value": values["second"]}}},
        {"role": "test", "estimates": {"pass@1": {"value": values["test"]}}},
    ]
    path = run_dir / "evaluations" / f"step-{step:06d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results))


def test_best_is_by_the_metric_asked_for_where_all_sets_have_it(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    steps = [
        [{"pass@1": 0.5, "greedy": 0.25}, {"pass@1": 0.5, "greedy": 0.25}],
        [{"pass@1": 0.25, "greedy": 0.5}, {"pass@1": 0.25, "greedy": 0.5}],
        [{"pass@1": 1.0, "greedy": 1.0}, {}],  # no prompt of the other set got all of its verdicts
        [{"pass@1": 0.0, "greedy": 0.0}] * 2,
    ]
    for step, sets in enumerate(steps, start=1):
        write(tmp_path, step)
        estimates = [{name: {"value": value} for name, value in each.items()} for each in sets]
        results = [{"role": "validation", "estimates": each} for each in estimates]
        (tmp_path / "evaluations" / f"step-{step:06d}.json").write_text(json.dumps(results))
    assert validation_scores(tmp_path / "evaluations", "pass@1") == {1: 0.5, 2: 0.25, 4: 0.0}
    Retention(CheckpointsConfig(keep_best=1, best_by="greedy"), tmp_path)()
    assert folders.steps_of(tmp_path) == [2, 4]


def test_best_is_by_the_mean_over_validation_sets(tmp_path: Path) -> None:
    evaluation(tmp_path, 1, first=0.5, second=0.25, test=0.0)
    evaluation(tmp_path, 2, first=0.125, second=0.25, test=1.0)
    evaluation(tmp_path, 3, first=0.0, second=0.0, test=0.0)
    (tmp_path / "evaluations" / "before.json").write_text("[]")
    assert validation_scores(tmp_path / "evaluations", "pass@1") == {1: 0.375, 2: 0.1875, 3: 0.0}
    for step in (1, 2, 3):
        write(tmp_path, step)
    Retention(CheckpointsConfig(keep_best=1), tmp_path)()
    assert folders.steps_of(tmp_path) == [1, 3]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
