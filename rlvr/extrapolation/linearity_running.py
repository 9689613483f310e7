"""What `rlvr linearity` does once its options are known, and what it shows."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlvr.config import LoadedRecipe, load_recipe
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.linearity_logprobs import (
    TEMPERATURE,
    Completion,
    CompletionPlan,
    base_policy,
    base_tokenizer,
    kept_completions,
    measure_logprobs,
    plan_completions,
    sample_completions,
    token_label,
    write_completions,
)
from rlvr.extrapolation.linearity_measure import RunCheckpoints, SampleRule, measure_weights, open_run
from rlvr.extrapolation.linearity_report import (
    histogram_edges,
    logprobs_report,
    markdown_of,
    table_of,
    weights_report,
    windows_report,
)
from rlvr.extrapolation.output_folder import writing_to
from rlvr.extrapolation.provenance import PACKAGES, write_json
from rlvr.progress_bars import progress_columns
from rlvr.reporting.linearity_pictures import draw_linearity
from rlvr.run_directory import installed_version

FEW_CHECKPOINTS = 5
RECIPE, COMPLETIONS, REPORT, TABLES = "recipe.yaml", "completions.json", "linearity.json", "linearity.md"
THOUSAND = 1e3


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    run_dir: Path
    out: Path
    weights: SampleRule
    with_logprobs: bool
    min_move: float  # nats
    prompts: int
    samples: int


@dataclass(frozen=True)
class Reading:
    """What the log-probabilities need, made ready before anything takes long."""

    loaded: LoadedRecipe
    base: Path
    tokenizer: PreTrainedTokenizerBase
    plan: CompletionPlan


def run_linearity(options: Options) -> Path:
    """Measures a run, writes the numbers, tables and pictures into `options.out`, and shows the tables.

    What is cheap to refuse is refused first.
    """
    disable_progress_bar()
    console = Console()
    recipe = options.run_dir / RECIPE
    loaded = load_recipe(recipe) if recipe.is_file() else None
    run = open_run(options.run_dir, None if loaded is None else loaded.recipe.model)
    reading = _reading(options, loaded, run) if options.with_logprobs else None
    warnings = _warnings(run, options.weights)
    for warning in warnings:
        _say(console, f"warning: {warning}")
    with writing_to(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with Progress(*progress_columns(), console=console) as progress:
        report = {**_head(options, run, reading, warnings), **_weights(options, run, progress)}
        report["logprobs"] = None if reading is None else _logprobs(options, run, reading, progress)
    with writing_to(options.out):
        (options.out / TABLES).write_text(markdown_of(report), encoding="utf-8")
        pictures = draw_linearity(report, options.out)
        write_json(options.out / REPORT, report)
    console.print(table_of(report))
    for path in (options.out / REPORT, options.out / TABLES, *pictures):
        _say(console, f"written  {path}")
    return options.out / REPORT


def _reading(options: Options, loaded: LoadedRecipe | None, run: RunCheckpoints) -> Reading:
    if loaded is None:
        raise ExtrapolationError(
            f"{options.run_dir} has no {RECIPE}, which says for what prompts the base policy samples; put it there, or"
            " give --no-logprobs."
        )
    if run.base is None:
        reason = run.left_out[loaded.recipe.model.path].rstrip(".")
        raise ExtrapolationError(f"The base policy has to sample, but {reason}; mend that, or give --no-logprobs.")
    tokenizer = base_tokenizer(loaded, run.base)
    plan = plan_completions(loaded, tokenizer, options.prompts, options.samples, options.weights.seed)
    return Reading(loaded, run.base, tokenizer, plan)


def _warnings(run: RunCheckpoints, rule: SampleRule) -> list[str]:
    found = [f"{path} is left out: {reason}" for path, reason in run.left_out.items()]
    count = len(run.steps)
    if count < FEW_CHECKPOINTS:
        found.append(
            f"{count} checkpoints say little: even noise has a high R^2 with so few; set trainer.save_steps lower for"
            f" {FEW_CHECKPOINTS} or more"
        )
    if count < rule.min_distinct:
        found.append(
            f"no weight can take {rule.min_distinct} values at {count} checkpoints, so none is kept; give"
            f" --min-distinct {count} or less"
        )
    return found


def _head(options: Options, run: RunCheckpoints, reading: Reading | None, warnings: list[str]) -> dict[str, Any]:
    rule = options.weights
    settings: dict[str, Any] = {
        "share": rule.share,
        "least_per_tensor": rule.least,
        "min_range": rule.min_range,
        "min_distinct": rule.min_distinct,
        "min_move": options.min_move,
        "seed": rule.seed,
    }
    if reading is not None:
        settings |= {
            "prompts": len(reading.plan.prompts),
            "samples": reading.plan.samples,
            "sampling": reading.plan.sampling,
            "logprobs_temperature": TEMPERATURE,
        }
    return {
        "run": str(options.run_dir),
        "steps": run.steps,
        "checkpoints": [str(view.path) for view in run.views],
        "left_out": run.left_out,
        "warnings": warnings,
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := installed_version(name))},
        },
        "histogram_edges": histogram_edges(),
    }


def _weights(options: Options, run: RunCheckpoints, progress: Progress) -> dict[str, Any]:
    last = run.views[-1]
    total = sum(last.info(name).numel for name in last.names())
    bar = progress.add_task("weights", total=total / THOUSAND, note="thousand values")
    traces = measure_weights(
        options.run_dir, run, options.weights, lambda values: progress.advance(bar, values / THOUSAND)
    )
    progress.update(bar, completed=total / THOUSAND)
    return {"weights": weights_report(traces), "windows": windows_report(traces.products, run.steps)}


def _logprobs(options: Options, run: RunCheckpoints, reading: Reading, progress: Progress) -> dict[str, Any]:
    def advances(name: str, total: int) -> Callable[[int], None]:
        bar = progress.add_task(name, total=total, note="completions")
        return lambda done: progress.advance(bar, done)

    plan, path = reading.plan, options.out / COMPLETIONS
    model = base_policy(reading.loaded, reading.base)
    completions: list[Completion] | None = kept_completions(path, plan)
    if completions is None:
        advance = advances("sample", len(plan.prompts) * plan.samples)
        completions = sample_completions(model, reading.tokenizer, plan, advance)
        with writing_to(options.out):
            write_completions(path, plan, completions)
    advance = advances("log-probs", len(completions) * len(run.views))
    pad_token_id = reading.tokenizer.pad_token_id
    logprobs = measure_logprobs(model, run.views, completions, pad_token_id, advance)
    return logprobs_report(
        logprobs, run.steps, options.min_move, lambda index: token_label(completions, reading.tokenizer, index)
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
