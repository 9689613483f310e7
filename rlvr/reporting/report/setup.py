"""What was run and on what, and in what several runs differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlvr.reporting.printable import printable
from rlvr.reporting.report.blocks import Table
from rlvr.reporting.report.records import Run

ABSENT, SECTION = "(not set)", "(set, see below)"
LONGEST_VALUE = 300  # characters
FACTS = ("seed", "machine", "num_processes", "python")

# (what it is, dotted key of the recipe)
SUMMARY_KEYS: tuple[tuple[str, str], ...] = (
    ("model", "model.path"),
    ("training data", "data.train.dataset"),
    ("prompt template", "data.template"),
    ("algorithm", "algorithm.preset"),
    ("guidance", "guidance.rule"),
    ("extrapolation", "extrapolation.mode"),
    ("completions per prompt", "trainer.num_generations"),
    ("completions per device and pass", "trainer.per_device_train_batch_size"),
    ("passes per step", "trainer.gradient_accumulation_steps"),
    ("longest completion", "trainer.max_completion_length"),
    ("temperature", "trainer.temperature"),
    ("learning rate", "trainer.learning_rate"),
    ("steps", "trainer.max_steps"),
)


def what_was_run(run: Run) -> Table:
    """The recipe in short."""
    rows = [[name, shown(value)] for name, key in SUMMARY_KEYS if (value := run.setting(key)) is not None]
    functions = run.setting("rewards.functions")
    if isinstance(functions, list):
        labels = [
            f"{each.get('name') or each.get('use')} x {shown(each.get('weight', 1.0))}"
            for each in functions
            if isinstance(each, Mapping)
        ]
        rows.append(["rewards x weight", printable(", ".join(labels))])
    regularizers = run.setting("regularizers")
    if isinstance(regularizers, Mapping):
        rows.append(["regularisers", ", ".join(str(key) for key, each in regularizers.items() if each) or "none"])
    return Table("Recipe in short", ["", ""], rows, is_numeric=False)


def on_what(run: Run) -> Table:
    """Command, machine, seed and versions."""
    facts = run.facts
    command = facts.get("command")
    rows = [
        ["folder", printable(str(run.folder.resolve()))],
        ["command", printable(" ".join(map(str, command))) if isinstance(command, list) else "-"],
        *([key.replace("num_", ""), shown(facts[key])] for key in FACTS if facts.get(key) is not None),
    ]
    versions = facts.get("versions")
    if isinstance(versions, Mapping):
        rows.append(["versions", printable(", ".join(f"{name} {each}" for name, each in versions.items()))])
    return Table("Command, machine and versions", ["", ""], rows, is_numeric=False)


def shown(value: Any) -> str:
    """A value of a recipe on one line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return printable(text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ...").replace("\n", "\\n")


def differences(runs: Sequence[Run]) -> Table | None:
    """The dotted keys whose values are not the same in all recipes; None where there are none."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = []
    for key in keys:
        values = [_value(each, key) for each in flat]
        if len(set(values)) > 1:
            rows.append([printable(key), *values])
    if not rows:
        return None
    return Table("Recipe differences", ["key", *(run.name for run in runs)], rows, is_numeric=False)


def _value(flat: Mapping[str, Any], key: str) -> str:
    if key in flat:
        return shown(flat[key])
    return SECTION if any(each.startswith(f"{key}.") for each in flat) else ABSENT


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no mapping and no list."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from _flat(each, f"{where}.{index}")
    else:
        yield where, value
