"""`rlvr hints make`: hints of a whole data set, written by the policy ahead of training."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.table import Table

from rlvr.errors import DataError
from rlvr.guidance.hint_files import Hints, write_hints
from rlvr.guidance.hints import HintStore
from rlvr.guidance.prompting import text_of_prompt
from rlvr.sampling.groups import Group

Progress = Callable[[int, int], None]  # takes (prompt, level) pairs done, and in all


def make_hints(
    store: HintStore, data: Dataset, levels: int, output: Path, *, chunk: int, writes: bool, progress: Progress
) -> Counter[str]:
    """Writes the hints of all prompts of `data` to `output`, and returns how often what happened.

    Between chunks of prompts the work is kept beside `output`, so that an interrupted command goes on where it was. All
    ranks call it; the one that `writes` does. A prompt's levels end before the first that could not be had. Raises
    DataError when the kept work is of other data.
    """
    prompts = dict(zip(data["prompt_id"], map(text_of_prompt, data["prompt"]), strict=True))
    partial = output.with_name(f"{output.name}.part")
    done = _kept(partial, prompts)
    wanted = [(row, level) for level in range(1, levels + 1) for row in range(len(data))]
    left = [(row, level) for row, level in wanted if (data[row]["prompt_id"], level) not in done]
    counts: Counter[str] = Counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(left), chunk):
        progress(len(wanted) - len(left) + first, len(wanted))
        asked = [(_group(data[row]), level) for row, level in left[first : first + chunk]]
        # One level at a time, as a store answers with one hint per prompt.
        for level in sorted({level for _, level in asked}):
            groups = [(group, each) for group, each in asked if each == level]
            found = store.ready(groups, step=0)
            counts += store.flush()
            done |= {(group.prompt_id, level): found.get(group.prompt_id) for group, _ in groups}
        if writes:
            _keep(partial, [(g.prompt_id, level, done[g.prompt_id, level]) for g, level in asked], prompts)
    progress(len(wanted), len(wanted))
    hints = _in_levels(done, levels)
    if writes:
        write_hints(output, hints, prompts)
        partial.unlink(missing_ok=True)
    counts["prompts with a hint"] = len(hints)
    counts["prompts without"] = len(prompts) - len(hints)
    counts["hints"] = sum(map(len, hints.values()))
    return counts


def report_table(counts: Mapping[str, int], output: Path) -> Table:
    """What `make_hints` counted, in words."""
    words = {
        "prompts with a hint": "prompts with a hint",
        "prompts without": "prompts without one",
        "hints": "hints written",
        "stating": "refused: states the answer",
        "sufficient": "refused: alone leads to the answer",
        "unusable": "attempts without a usable text",
    }
    table = Table("what", "number", title=str(output))
    table.columns[1].justify = "right"
    for name, text in words.items():
        table.add_row(text, str(counts.get(name, 0)))
    return table


def _group(row: Mapping[str, Any]) -> Group:
    columns = {name: value for name, value in row.items() if name not in ("prompt", "prompt_id")}
    return Group(row["prompt_id"], (), (), row["prompt"], columns)


def _in_levels(done: Mapping[tuple[int, int], str | None], levels: int) -> Hints:
    hints: Hints = {}
    for prompt_id in sorted({prompt_id for prompt_id, _ in done}):
        texts: list[str] = []
        for level in range(1, levels + 1):
            text = done.get((prompt_id, level))
            if text is None:
                break
            texts.append(text)
        if texts:
            hints[prompt_id] = tuple(texts)
    return hints


def _keep(path: Path, made: Sequence[tuple[int, int, str | None]], prompts: Mapping[int, str]) -> None:
    with path.open("a", encoding="ascii") as file:
        for prompt_id, level, hint in made:
            row = {"prompt_id": prompt_id, "prompt": prompts[prompt_id], "level": level, "hint": hint}
            file.write(json.dumps(row) + "\n")


def _kept(path: Path, prompts: Mapping[int, str]) -> dict[tuple[int, int], str | None]:
    """The work of an interrupted command; a last line that was cut off is made again."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="ascii")
    kept: dict[tuple[int, int], str | None] = {}
    for line in text[: text.rfind("\n") + 1].splitlines():
        row = json.loads(line)
        if prompts.get(row["prompt_id"]) != row["prompt"]:
            raise DataError(f"{path} was begun for other data; remove it, or choose another --output")
        kept[row["prompt_id"], row["level"]] = row["hint"]
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="ascii")
    return kept
