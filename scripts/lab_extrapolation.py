"""Do predicted checkpoints do what trained ones do? The study of extrapolation in docs/lab.md.

    python scripts/lab_extrapolation.py [--seeds 1 2 3] [--jobs 2] [--runs runs/lab/extrapolation]
        [--output docs/benchmarks/lab_extrapolation.json] [--picture docs/lab_extrapolation.png]

For every seed a run of recipes/lab/extrapolation/reference.yaml leaves checkpoints, and one of rl_extra.yaml jumps.
Then, all held out: weights on the line from step 0 through an early checkpoint against those trained to the same step;
logits extrapolated from the base and a checkpoint, alpha chosen on the validation set, against the best checkpoint by
the same set; RL-Extra against as many real steps; and `rlvr linearity` of each run. What has been measured is not
measured again, so that an interrupted study goes on.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from lab import interval, train_all
from rich.console import Console
from transformers import PreTrainedModel

from rlvr.config import load_recipe
from rlvr.config.schema import ModelConfig
from rlvr.evaluation.estimators import NUM_RESAMPLES, Estimate, bootstrap_interval, pass_at_k
from rlvr.evaluation.records import PromptRecord
from rlvr.evaluation.sets import SetKind
from rlvr.evaluation.standalone import Evaluation, evaluate_records, load_evaluation
from rlvr.extrapolation.logits import load_extrapolated
from rlvr.model import load_policy
from rlvr.model_paths import resolve_model_path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes" / "lab" / "extrapolation"
REFERENCE, EXTRA = RECIPES / "reference.yaml", RECIPES / "rl_extra.yaml"
BASE = "builtin://starter"
LAST, EVERY = 60, 5
TARGETS = {10: (20, 30, 40), 20: (30, 40, 60), 30: (40, 50, 60)}  # by the checkpoint that a line goes through
ALPHAS = (1.0, 1.25, 1.5, 2.0, 3.0)  # of logits
LOGITS_FROM = 30
EXTRA_STEPS = 30
COLOURS = ("#0072B2", "#D55E00", "#009E73")


class Measured:
    """Results by name in a file, each measured once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.results:
            self.results[name] = measure()
            self.path.write_text(json.dumps(self.results, indent=1) + "\n")
        found: dict[str, Any] = self.results[name]
        return found


def scores(records: Sequence[PromptRecord]) -> list[float]:
    """pass@1 of every prompt, in the order of the prompts."""
    ordered = sorted(records, key=lambda record: record.prompt_id)
    return [pass_at_k(len(each.outcomes), sum(o == 1.0 for o in each.outcomes), 1) for each in ordered]


def estimate(values: Sequence[float]) -> dict[str, Any]:
    low, high = bootstrap_interval(values, num_resamples=NUM_RESAMPLES, seed=0)
    return {**asdict(Estimate(sum(values) / len(values), low, high)), "prompts": list(values)}


def measure(evaluation: Evaluation, model: PreTrainedModel, which: SetKind) -> dict[str, Any]:
    """pass@1 on the one set of that kind."""
    (records,) = evaluate_records(evaluation, model, which, Console(quiet=True)).values()
    return estimate(scores(records))


def policy(path: Path | str) -> PreTrainedModel:
    return load_policy(ModelConfig(path=str(path)))


def trained(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step}" if step else Path(resolve_model_path(BASE))


def predicted(run: Path, source: int, target: int, folder: Path, options: Sequence[str] = ()) -> Path:
    """Weights on the line from step 0 through `source`, at `target`, by the command that a user would call."""
    out = folder / f"{source}-{target}{''.join(options)}"
    if not out.exists():
        command = [sys.executable, "-m", "rlvr.cli", "extrapolate", "weights", "--base", str(trained(run, 0))]
        command += ["--tuned", str(trained(run, source)), "--alpha", str(target / source), *options, "--out", str(out)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return out


def study(run: Path, extra: Path, measured: Measured, console: Console) -> dict[str, Any]:
    """All that is measured of one seed."""
    evaluation = load_evaluation(load_recipe(run / "recipe.yaml"))
    folder = run / "predicted"
    for step in range(0, LAST + 1, EVERY):
        model = policy(trained(run, step))
        measured(f"dev {step}", lambda model=model: measure(evaluation, model, "validation"))  # type: ignore[misc]
        measured(f"trained {step}", lambda model=model: measure(evaluation, model, "test"))  # type: ignore[misc]
        console.print(f"{run.name}: trained {step}: {interval(measured.results[f'trained {step}'])}")
    for source, targets in TARGETS.items():
        for target in targets:
            for name, options in (("weights", ()), ("all weights", ("--no-default-copies",))):
                path = predicted(run, source, target, folder, options)
                key = f"{name} {source} {target}"
                measured(key, lambda path=path: measure(evaluation, policy(path), "test"))  # type: ignore[misc]
                console.print(f"{run.name}: {key}: {interval(measured.results[key])}")
    for which, kind in (("dev", "validation"), ("test", "test")):
        for alpha in ALPHAS:
            key = f"logits {which} {alpha:g}"

            def of_logits(alpha: float = alpha, kind: Any = kind) -> dict[str, Any]:
                model, _ = load_extrapolated(BASE, str(trained(run, LOGITS_FROM)), alpha)
                return measure(evaluation, model, kind)

            measured(key, of_logits)
            console.print(f"{run.name}: {key}: {interval(measured.results[key])}")
    measured("rl_extra", lambda: measure(evaluation, policy(extra / "policy"), "test"))
    measured("jumps", lambda: {"steps": jumps_of(extra)})
    measured("linearity", lambda: linearity(run))
    return measured.results


def jumps_of(run: Path) -> list[dict[str, float]]:
    """What the run logged of each jump."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "extrapolation/undone", "extrapolation/validation_before", "extrapolation/validation_after")
    return [{name: record[name] for name in names} for record in records if record.get("extrapolation/jump")]


def linearity(run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "rlvr.cli", "linearity", str(run)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    text = (run / "linearity" / "linearity.json").read_text()
    found: dict[str, Any] = json.loads(text.replace(resolve_model_path(BASE), BASE))  # no path of this machine
    return found


def paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The difference over the same prompts with its interval."""
    differences = [a - b for a, b in zip(first["prompts"], second["prompts"], strict=True)]
    return interval(estimate(differences))


def chosen(found: Mapping[str, Any]) -> tuple[int, float]:
    """The checkpoint and the alpha of logits that are best on the validation set."""
    steps = {step: found[f"dev {step}"]["value"] for step in range(0, LAST + 1, EVERY)}
    alphas = {alpha: found[f"logits dev {alpha:g}"]["value"] for alpha in ALPHAS}
    return max(steps, key=steps.__getitem__), max(alphas, key=alphas.__getitem__)


def tables(results: Mapping[int, Mapping[str, Any]]) -> str:
    """Markdown: for every seed what was predicted, beside what was trained."""
    lines = ["| seed | from step | to step | trained there | predicted | predicted, norms and embeddings too |"]
    lines.append("|---" * 6 + "|")
    for seed, found in results.items():
        for source, targets in TARGETS.items():
            for target in targets:
                names = (f"trained {target}", f"weights {source} {target}", f"all weights {source} {target}")
                cells = [interval(found[name]) for name in names]
                lines.append(f"| {seed} | {source} | {target} | {' | '.join(cells)} |")
    lines += ["", "| seed | best checkpoint by dev | its test | logits: alpha by dev | its test | difference |"]
    lines.append("|---" * 6 + "|")
    for seed, found in results.items():
        best, alpha = chosen(found)
        checkpoint, logits = found[f"trained {best}"], found[f"logits test {alpha:g}"]
        cells = [f"{best}", interval(checkpoint), f"{alpha:g}", interval(logits), paired(logits, checkpoint)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    lines += ["", f"| seed | plain, {EXTRA_STEPS} steps | RL-Extra, as many | difference | jumps undone |"]
    lines.append("|---" * 5 + "|")
    for seed, found in results.items():
        plain, extra = found[f"trained {EXTRA_STEPS}"], found["rl_extra"]
        jumps = found["jumps"]["steps"]
        undone = sum(jump["extrapolation/undone"] for jump in jumps)
        cells = [interval(plain), interval(extra), paired(extra, plain), f"{undone:g} of {len(jumps)}"]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: Mapping[int, Mapping[str, Any]], path: Path) -> None:
    """By seed: the trained curve, and the lines from early checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(4.8 * len(results), 3.9), layout="constrained", squeeze=False)
    for axis, (seed, found) in zip(axes[0], results.items(), strict=True):
        steps = range(0, LAST + 1, EVERY)
        curve = [found[f"trained {step}"] for step in steps]
        axis.plot(steps, [each["value"] for each in curve], color="black", lw=1.5, label="trained")
        axis.fill_between(steps, [e["low"] for e in curve], [e["high"] for e in curve], color="black", alpha=0.12)
        for colour, (source, targets) in zip(COLOURS, TARGETS.items(), strict=True):
            ends = [found[f"trained {source}"], *[found[f"weights {source} {target}"] for target in targets]]
            errors = [[e["value"] - e["low"] for e in ends], [e["high"] - e["value"] for e in ends]]
            label = f"weights from steps 0 and {source}"
            places = (source, *targets)
            axis.errorbar(places, [e["value"] for e in ends], errors, color=colour, fmt="o--", ms=4, lw=1, label=label)
        axis.plot([EXTRA_STEPS], [found["rl_extra"]["value"]], "*", color="#CC79A7", ms=12, label="RL-Extra")
        axis.set(title=f"seed {seed}", xlabel="real optimiser step, or the step predicted", ylim=(0, 1.02))
    axes[0][0].set_ylabel("held-out pass@1")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/lab/extrapolation"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    console = Console()
    train_all([REFERENCE, EXTRA], options.seeds, options.runs, options.jobs)
    results = {}
    for seed in options.seeds:
        run, extra = (options.runs / f"{recipe.stem}-{seed}" for recipe in (REFERENCE, EXTRA))
        results[seed] = study(run, extra, Measured(options.runs / f"measured-{seed}.json"), console)
    Console(width=200, soft_wrap=True).print(tables(results), markup=False, highlight=False)
    if options.picture:
        draw(results, options.picture)
    if options.output:
        versions = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}
        facts = {"machine": f"{platform.machine()}, CPU, 1 thread per run", "versions": versions, "seeds": results}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
