"""Builds the report of one run or several."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlvr.files import write_whole
from rlvr.reporting.report.alarms import alarms_of
from rlvr.reporting.report.blocks import Section
from rlvr.reporting.report.comparison import compared
from rlvr.reporting.report.completions import Completions, Packed, pack, read_completions
from rlvr.reporting.report.page import Page, render
from rlvr.reporting.report.reading import read_runs
from rlvr.reporting.report.records import Run
from rlvr.reporting.report.sections import changes_table, sections_of, verdict_notes
from rlvr.reporting.report.setup import on_what, what_was_run
from rlvr.reporting.report.verdict import in_words, status_of

COMPLETION_BYTES = 11_500_000  # of packed completions in the page, which leaves room for charts in 15 MB
EXAMPLES = 4
WORDS = {1.0: "right", 0.0: "wrong", None: "no verdict"}


def build_report(folders: Sequence[Path], output: Path, is_live: bool = False) -> list[Run]:
    """Writes the page, whole or not at all, and returns the runs that it is about.

    With `is_live` the page reloads itself as long as a run is unfinished. Raises UserError for a folder without a run.
    """
    runs = read_runs(folders)
    going_on = is_live and not all(run.is_finished for run in runs)
    completions = [read_completions(run.folder / "completions") for run in runs]
    packed = _packed(completions)
    build = _single if len(runs) == 1 else _several
    write_whole(output, render(build(runs, going_on, completions, packed)))
    return runs


def _single(runs: Sequence[Run], is_live: bool, completions: Sequence[Completions], packed: Packed) -> Page:
    (run,) = runs
    setup = Section("setup", "What was run", tables=[what_was_run(run), on_what(run)])
    return Page(
        title=run.name,
        subtitle=status_of(run).capitalize() + ".",
        verdicts=[(run.name, in_words(run))],
        notes=verdict_notes(run),
        changes=changes_table(run),
        alarms=list(alarms_of(run).values()),
        sections=[setup, *sections_of(run)],
        **_rest(runs, is_live, completions, packed),
    )


def _several(runs: Sequence[Run], is_live: bool, completions: Sequence[Completions], packed: Packed) -> Page:
    return Page(
        title=f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        subtitle="The runs beside one another, aligned by optimiser step.",
        verdicts=[(run.name, [*in_words(run), f"State: {status_of(run)}."]) for run in runs],
        notes=[f"{run.name}: {note}" for run in runs for note in verdict_notes(run)],
        changes=None,
        alarms=None,
        sections=compared(runs),
        **_rest(runs, is_live, completions, packed),
    )


def _rest(runs: Sequence[Run], is_live: bool, completions: Sequence[Completions], packed: Packed) -> dict[str, Any]:
    """What both kinds of page share."""
    total = sum(each.total for each in completions)
    return {
        "is_live": is_live,
        "completion_notes": [_how_many(total, packed.included), *(note for each in completions for note in each.notes)],
        "chunks": packed.chunks,
        "has_tokens": any(row["tokens"] is not None for each in completions for row in each.rows),
        "examples": _examples(completions[0].rows),
        "run_names": [run.name for run in runs],
        "footer": "Made by rlvr report. The file needs no network and holds everything that it shows.",
    }


def _packed(completions: Sequence[Completions]) -> Packed:
    """The completions of all runs, equally many bytes of each."""
    parts = [
        pack(({**row, "run": index} for row in each.rows), COMPLETION_BYTES // len(completions))
        for index, each in enumerate(completions)
    ]
    return Packed(tuple(chunk for part in parts for chunk in part.chunks), sum(part.included for part in parts))


def _how_many(total: int, included: int) -> str:
    if not total:
        return "The run recorded no completions (report.completions_every), or ended before it could."
    if included == total:
        return f"All {total:,} recorded completions."
    return (
        f"{included:,} of the {total:,} recorded completions: those of the first and last step, and of the steps"
        " between evenly many of every outcome. The others are in completions/*.parquet of the run directory."
    )


def _examples(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first right and the first wrong completion of the first and of the last step."""
    steps = [row["step"] for row in rows]
    ends = {min(steps), max(steps)} if steps else set()
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if row["step"] in ends:
            chosen.setdefault((row["step"], row["outcome"]), {**row, "word": WORDS.get(row["outcome"], "")})
    return [chosen[key] for key in islice(sorted(chosen, key=lambda key: (key[0], str(key[1]))), EXAMPLES)]
