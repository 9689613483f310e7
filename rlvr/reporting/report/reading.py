"""Reads a run directory, whatever state a run or a crash left it in."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlvr.errors import UserError
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.outcomes import kept_outcomes
from rlvr.reporting.printable import printable
from rlvr.reporting.report.records import Moment, Run, SetResult
from rlvr.run_directory import SUMMARY

STEP_FILE = re.compile(r"step-(\d+)")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in the order of the folders, each under the shortest end of its path that tells it from the others.

    Raises UserError for a folder that holds no run.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name the trainer.output_dir of a run.")
        if not any((folder / name).exists() for name in ("recipe.yaml", "run.json", "metrics.jsonl")):
            raise UserError(f"{folder} holds no run: recipe.yaml, run.json and metrics.jsonl are all missing.")
    for number, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            raise UserError(f"{number} is named {count} times; name each run once.")
    return [_read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({path[-depth:] for path in parts}) < len(parts):
        depth += 1
    return [printable("/".join(path[-depth:])) for path in parts]


def _read_run(folder: Path, name: str) -> Run:
    notes: list[str] = []
    steps, is_finished = _read_metrics(folder / "metrics.jsonl", notes)
    last = int(steps[-1]["step"]) if steps else 0
    return Run(
        name=name,
        folder=folder,
        facts=_read_mapping(folder / "run.json", notes),
        recipe=_read_mapping(folder / "recipe.yaml", notes),
        steps=steps,
        is_finished=is_finished,
        moments=_read_moments(folder / "evaluations", last, notes),
        notes=tuple(notes),
    )


# ---- metrics --------------------------------------------------------------------------------------------------------


def _read_metrics(path: Path, notes: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """The records of steps, newer ones over older ones of the same step, and whether the run came to its end."""
    if not path.exists():
        notes.append("metrics.jsonl is missing: the run logged no step.")
        return [], False
    by_step: dict[int, dict[str, Any]] = {}
    unreadable, is_finished = 0, False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        record = _record(line)
        if record is None:
            unreadable += bool(line.strip())
        elif SUMMARY in record:
            is_finished = True
        else:
            is_finished = False
            step = record["step"]
            by_step[step] = by_step.get(step, {}) | {
                printable(key): step if key == "step" else _number(value) for key, value in record.items()
            }
    if unreadable:
        lines = "a line that is" if unreadable == 1 else f"{unreadable} lines that are"
        notes.append(f"metrics.jsonl has {lines} no log record, as a crash leaves it; left out.")
    if not by_step:
        notes.append("metrics.jsonl has no record of a step: the run ended before its first step was logged.")
    return [by_step[step] for step in sorted(by_step)], is_finished


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and type(record.get("step")) is int and record["step"] >= 0
    return record if is_record else None


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


# ---- recipe and facts -----------------------------------------------------------------------------------------------


def _read_mapping(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """The mapping in a JSON or YAML file; empty, with a note, where there is none."""
    if not path.exists():
        notes.append(f"{path.name} is missing.")
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} cannot be read.")
        return {}
    return found


# ---- evaluations ----------------------------------------------------------------------------------------------------


def _read_moments(folder: Path, last_step: int, notes: list[str]) -> list[Moment]:
    moments = []
    for path in sorted(folder.glob("*.json")):
        at = STEP_FILE.fullmatch(path.stem)
        if at is None and path.stem not in ("before", "after"):
            continue
        step = int(at[1]) if at else {"before": 0, "after": last_step}[path.stem]
        results = _read_results(path)
        if results is None:
            notes.append(f"evaluations/{path.name} cannot be read.")
        elif results:
            moments.append(Moment(f"step {step}" if at else path.stem, step, results))
    order = {"before": 0, "after": 2}
    return sorted(moments, key=lambda each: (each.step, order.get(each.name, 1)))


def _read_results(path: Path) -> list[SetResult] | None:
    """None where the file is not a list of results."""
    try:
        return [_result(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _result(entry: Mapping[str, Any]) -> SetResult:
    estimates = {}
    for metric, each in entry["estimates"].items():
        numbers = [_number(each[key]) for key in ("value", "low", "high")]
        if None not in numbers:
            estimates[printable(metric)] = Estimate(*numbers)  # type: ignore[arg-type]
    return SetResult(
        name=printable(str(entry["name"])),
        is_test=entry.get("role", "test") == "test",
        num_prompts=int(entry["num_prompts"]),
        num_samples=int(entry["num_samples"]),
        num_unscored=int(entry.get("num_unscored", 0)),
        estimates=estimates,
        mean_length=_number(entry.get("mean_length")),
        truncated_frac=_number(entry.get("truncated_frac")),
        outcomes=None if entry.get("outcomes") is None else kept_outcomes(entry["outcomes"]),
    )
