"""Runs the recipes of `recipes/lab` with several seeds and compares how they end: the table and picture of docs/lab.md.

    python scripts/lab.py [RECIPE ...] [--seeds 1 2 3] [--jobs 2] [--runs runs/lab] [--output docs/benchmarks/lab.json]

A run that has ended is not run again, so that an interrupted study goes on. Each run is a process of one thread.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlvr.reporting.console import is_test
from rlvr.reporting.recorder import read_metrics

ROOT = Path(__file__).resolve().parents[1]
STEPS_SHOWN = (1, 10, 20, 30, 40)
ENTROPY = "entropy/mean_token"


def train(recipe: Path, seed: int, folder: Path) -> None:
    """One run, unless it has ended before. Raises CalledProcessError with its output in `folder`.log."""
    if (folder / "evaluations" / "after.json").exists():
        return
    command = [sys.executable, "-m", "rlvr.cli", "train", str(recipe)]
    command += [f"trainer.seed={seed}", f"trainer.output_dir={folder}", "report.to=[none]"]
    resume = ["--resume"] if (folder / "recipe.yaml").exists() and list(folder.glob("checkpoint-*")) else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([*command, *resume], stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)


def train_all(recipes: Sequence[Path], seeds: Sequence[int], runs: Path, jobs: int) -> None:
    work = [(recipe, seed, runs / f"{recipe.stem}-{seed}") for seed in seeds for recipe in recipes]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as executor:
        bar = progress.add_task("runs", total=len(work))
        for future in [executor.submit(train, *each) for each in work]:
            future.result()
            progress.advance(bar)


def estimates(path: Path) -> dict[str, Any]:
    """pass@k and greedy with intervals, by test set."""
    return {each["name"]: each["estimates"] for each in json.loads(path.read_text()) if is_test(each)}


def facts_of(folder: Path) -> dict[str, Any]:
    """What one run shows: entropy on the way, estimates at both ends, and the regularisers' own figures."""
    records = read_metrics(folder)
    by_step = {record["step"]: record for record in records}
    last = records[-10:]
    own = sorted(
        {name for record in last for name in record if name.startswith(("siren/", "lp_reg/", "guidance/", "dynamic/"))}
    )
    return {
        "extra_rollouts": sum(
            record.get(f"{stage}/extra_rollouts") or 0 for record in records for stage in ("guidance", "dynamic")
        ),
        "seconds_of_steps": sum(record.get("step_time") or 0 for record in records),
        "entropy": {step: by_step[step][ENTROPY] for step in STEPS_SHOWN if step in by_step},
        "entropy_curve": [record[ENTROPY] for record in records],
        "last_10_steps": {
            name: statistics.fmean(values)
            for name in (ENTROPY, "outcome/pass_rate", *own)
            if (values := [record[name] for record in last if record.get(name) is not None])
        },
        **{moment: estimates(folder / "evaluations" / f"{moment}.json") for moment in ("before", "after")},
    }


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def tables(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: the entropy on the way, then every estimate of every held-out set."""
    lines = [f"| recipe, seed | {' | '.join(f'step {step}' for step in STEPS_SHOWN)} |", "|---" * 6 + "|"]
    for name, facts in results.items():
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in facts['entropy'].values())} |")
    first = next(iter(results.values()))
    heads = [f"{held_out} {metric}" for held_out, metrics in first["after"].items() for metric in metrics]
    lines += ["", f"| recipe, seed | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, facts in {"before": first | {"after": first["before"]}, **results}.items():
        cells = [interval(e) for metrics in facts["after"].values() for e in metrics.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], recipes: Sequence[str], path: Path) -> None:
    """Entropy of every run on the left; the estimates at the end on the right, one mark per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(recipes, ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=False))
    sets = list(next(iter(results.values()))["after"])
    figure, axes = plt.subplots(1, 1 + len(sets), figsize=(4.6 * (1 + len(sets)), 3.8), layout="constrained")
    for name, facts in results.items():
        recipe = name.rpartition(", ")[0]
        axes[0].plot(range(1, 1 + len(facts["entropy_curve"])), facts["entropy_curve"], color=colours[recipe], lw=1)
    axes[0].set(title="policy entropy (nats per token)", xlabel="optimiser step", yscale="log")
    for axis, held_out in zip(axes[1:], sets, strict=True):
        start = next(iter(results.values()))["before"][held_out]
        for place, metric in enumerate(("pass@1", "pass@8")):
            axis.hlines(start[metric]["value"], place - 0.4, place + 0.4, color="grey", ls=":", lw=1.5)
            for number, (name, facts) in enumerate(results.items()):
                e = facts["after"][held_out][metric]
                error = [[e["value"] - e["low"]], [e["high"] - e["value"]]]
                x = place - 0.35 + 0.7 * number / max(1, len(results) - 1)
                axis.errorbar([x], [e["value"]], yerr=error, fmt="o", ms=4, color=colours[name.rpartition(", ")[0]])
        axis.set(title=f"{held_out} after (dotted: before)", ylim=(0, 1.02))
        axis.set_xticks([0, 1], ["pass@1", "pass@8"])
    for recipe in recipes:
        axes[0].plot([], [], color=colours[recipe], label=recipe)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()

    recipes = options.recipes or sorted((ROOT / "recipes" / "lab").glob("*.yaml"))
    train_all(recipes, options.seeds, options.runs, options.jobs)
    results = {
        f"{recipe.stem}, {seed}": facts_of(options.runs / f"{recipe.stem}-{seed}")
        for recipe in recipes
        for seed in options.seeds
    }
    Console(width=200, soft_wrap=True).print(tables(results), markup=False, highlight=False)
    if options.picture:
        draw(results, [recipe.stem for recipe in recipes], options.picture)
    if options.output:
        versions = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}
        facts = {"machine": f"{platform.machine()}, CPU, 1 thread per run", "versions": versions, "runs": results}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
