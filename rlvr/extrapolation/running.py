"""What the commands of `rlvr extrapolate` do once their options are known, and what they show."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.operations import OPERATIONS
from rlvr.extrapolation.output_folder import check_new
from rlvr.extrapolation.rules import Rules, Treatment, numbers_of, treatments
from rlvr.extrapolation.sources import Sources
from rlvr.extrapolation.view import WeightView
from rlvr.extrapolation.writing import Job, Written, gated, write_checkpoint
from rlvr.model_paths import resolve_model_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What all commands share."""

    out: Path
    dtype: str | None
    max_shard_gb: float
    copies: Sequence[str]
    alphas: tuple[tuple[str, float], ...]
    default_copies: bool
    adapter_base: Path | None

    def rules(self) -> Rules:
        return Rules(tuple(self.copies), self.alphas, self.default_copies)


def run_extrapolation(base: Path, tuned: Path, alpha: float | None, at_step: float | None, options: Options) -> None:
    """A + alpha (B - A); with `at_step` N, alpha = (N - step of A) / (step of B - step of A)."""
    check_new(options.out)
    sources = open_sources([base, tuned], options)
    if alpha is None:
        assert at_step is not None
        start, end = _steps(sources.views, "--alpha")
        if start == end:
            raise ExtrapolationError(f"{base} and {tuned} are both of step {start}; give checkpoints of two steps.")
        alpha = (at_step - start) / (end - start)
    compute("extrapolate", {"alpha": alpha}, sources, treatments(sources.tuned, options.rules()), options, {})


def run_line_fit(checkpoints: Sequence[Path], at_step: float, min_r2: float, options: Options) -> None:
    """Lines through checkpoints, whatever their order; what is copied comes from the newest."""
    if len(checkpoints) < 3:
        raise ExtrapolationError(
            f"--fit needs 3 checkpoints or more, not {len(checkpoints)}; for 2, give --base and --tuned."
        )
    check_new(options.out)
    sources = open_sources(checkpoints, options, by_step=True)
    steps = _steps(sources.views, "--base, --tuned and --alpha")
    chosen = treatments(sources.tuned, options.rules())
    sources.check_arithmetic([name for name, each in chosen.items() if not each.copied])
    with values_progress(Console()) as progress:
        values = sum(sources.infos[name].numel for name, each in chosen.items() if not each.copied)
        bar = progress.add_task("fit", total=values)
        chosen, fits = gated(sources, chosen, steps, min_r2, lambda done: progress.advance(bar, done))
    notes = {"min_r2": min_r2, "r2": fits}
    compute("line_fit", {"steps": steps, "at": at_step}, sources, chosen, options, notes, fits)


def run_average(checkpoints: Sequence[Path], weights: Sequence[float], options: Options) -> None:
    check_new(options.out)
    sources = open_sources(checkpoints, options)
    if len(weights) != len(checkpoints):
        raise ExtrapolationError(f"{len(checkpoints)} checkpoints have {len(weights)} weights; give one for each.")
    compute("average", {"weights": weights}, sources, treatments(sources.tuned, options.rules()), options, {})


def run_timber(base: Path, tuned: Path, keep: float, options: Options) -> None:
    check_new(options.out)
    sources = open_sources([base, tuned], options)
    compute("timber", {"keep": keep}, sources, treatments(sources.tuned, options.rules()), options, {})


def open_sources(paths: Sequence[Path], options: Options, by_step: bool = False) -> Sources:
    """The checkpoints, with `by_step` from the first step to the last. What is cheap to refuse is refused first."""
    from rlvr.extrapolation.checkpoints import open_checkpoint

    if options.dtype is not None and options.dtype not in DTYPES:
        raise ExtrapolationError(f"--dtype {options.dtype} is not among {', '.join(DTYPES)}; give one of them.")
    if not options.max_shard_gb > 0.0:
        raise ExtrapolationError(f"--max-shard-gb is {options.max_shard_gb:g}; give a size such as 5.")
    views = [open_checkpoint(_located(path), options.adapter_base) for path in paths]
    if by_step:
        steps = _steps(views, "--base, --tuned and --alpha")
        views = [view for _, view in sorted(zip(steps, views, strict=True), key=lambda pair: pair[0])]
    return Sources(views)


def _steps(views: Sequence[WeightView], instead: str) -> list[int]:
    """The step of each; the model that the run of one of them began from is of step 0."""
    from rlvr.extrapolation.checkpoints import model_of_run

    runs = {view.path.resolve().parent for view in views if view.step is not None}
    origins = {origin.resolve() for run in runs if (origin := model_of_run(run)) is not None}
    steps = []
    for view in views:
        if view.step is None and view.path.resolve() not in origins:
            raise ExtrapolationError(
                f"The step of {view.path} is not known, and no recipe.yaml beside the other checkpoints says that their"
                f" run began from it; give {instead} instead of a step."
            )
        steps.append(view.step or 0)
    return steps


def _located(path: Path) -> Path:
    """A folder or a file; `builtin://starter`, which a path writes with one slash, is a folder too."""
    scheme, colon, name = path.as_posix().partition(":/")
    if not colon or scheme != "builtin":
        return path
    return Path(resolve_model_path(f"{scheme}://{name}"))


def compute(
    operation: str,
    settings: Mapping[str, Any],
    sources: Sources,
    chosen: Mapping[str, Treatment],
    options: Options,
    notes: Mapping[str, Any],
    fits: Mapping[str, float] | None = None,
) -> None:
    rules = options.rules()
    notes = {
        "operation": operation,
        "formula": OPERATIONS[operation].formula,
        "settings": dict(settings),
        "rules": {"alphas": dict(rules.alphas), "copies": rules.copies, "default_copies": rules.default_copies},
        "dtype": options.dtype,
        **notes,
    }
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    job = Job(operation, settings, sources, chosen, dtype, options.adapter_base)
    console = Console()
    with values_progress(console) as progress:
        bar = progress.add_task(operation, total=sum(info.numel for info in sources.infos.values()))

        def advance(values: int) -> None:
            progress.advance(bar, values)

        def report(text: str) -> None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        written = write_checkpoint(job, options.out, int(options.max_shard_gb * 1e9), notes, advance, report)
    console.print(_table(job, fits or {}))
    report(_line(written, options.out))


def values_progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _table(job: Job, fits: Mapping[str, float]) -> Table:
    """What became of the tensors, by group; with fits, their median R^2."""
    table = Table(title=f"{job.operation}: {OPERATIONS[job.operation].formula}")
    table.add_column("tensors of", no_wrap=True)
    table.add_column("treatment", no_wrap=True)
    for heading in ("tensors", "values", *(["median R^2"] if fits else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for treatment, (tensors, values) in numbers_of(job.treatments, job.sources.infos).items():
        cells = [escape(treatment.group), _in_words(job, treatment), f"{tensors:,}", f"{values:,}"]
        if fits:
            found = [fits[name] for name, each in job.treatments.items() if each == treatment and name in fits]
            cells.append(f"{statistics.median(found):.3f}" if found else "")
        table.add_row(*cells)
    return table


def _in_words(job: Job, treatment: Treatment) -> str:
    if treatment.copied:
        return "copied"
    settings = job.settings if treatment.alpha is None else {"alpha": treatment.alpha}
    return ", ".join(
        f"{key} {' '.join(f'{each:g}' for each in value) if isinstance(value, list) else format(value, 'g')}"
        for key, value in settings.items()
    )


def _line(written: Written, out: Path) -> str:
    files = "1 file" if written.files == 1 else f"{written.files} files"
    return f"written  {out}  ({files}, {written.num_bytes / 1e9:.2f} GB, {written.seconds:.1f} s)"
