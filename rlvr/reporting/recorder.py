"""Keeps a run's numbers: `metrics.jsonl`, completions as parquet, the learning curve."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.reporting.completions import write_completions
from rlvr.reporting.console import is_test

HELD_OUT = "held-out pass@1, 95% interval"


class RecorderCallback(TrainerCallback):
    """Appends one JSON line per log record and writes the newest completions, on the main process only."""

    def __init__(self, run_dir: Path, completions_every: int) -> None:
        self.run_dir, self.completions_every = run_dir, completions_every
        # The trainer's, known once it is built.
        self.latest_completions: Callable[[], Mapping[str, Sequence[Any]]] | None = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step, **{name: _finite(value) for name, value in logs.items()}}
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self.latest_completions is not None
        due = self.completions_every > 0 and state.global_step % self.completions_every == 0
        if due and state.is_world_process_zero:
            write_completions(self.latest_completions(), self.run_dir / "completions", state.global_step)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a mean over nothing is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The log records of training steps, in order; after a resume the newest record of a step counts."""
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    by_step = {record["step"]: record for record in records if "reward/mean" in record}
    return [by_step[step] for step in sorted(by_step)]


def draw_learning_curve(
    records: Sequence[Mapping[str, Any]],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """A picture of the run: training pass rate with held-out pass@1 at both ends, entropy, completion length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [record["step"] for record in records]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (
        ("outcome/pass_rate", "pass rate of training completions", "#0072B2"),
        ("entropy/mean_token", "policy entropy (nats per token)", "#D55E00"),
        ("completions/mean_length", "completion length (tokens)", "#009E73"),
    )
    for axis, (name, title, colour) in zip(axes, panels, strict=True):
        axis.plot(steps, [record[name] for record in records], color=colour, linewidth=1.5)
        axis.set(title=title, xlabel="optimiser step")
        axis.grid(alpha=0.3)
    for results, step in ((before, 0), (after, steps[-1])):
        for result in filter(is_test, results):
            point = result["estimates"]["pass@1"]
            error = [[point["value"] - point["low"]], [point["high"] - point["value"]]]
            axes[0].errorbar([step], [point["value"]], yerr=error, fmt="o", color="black", capsize=4, label=HELD_OUT)
    axes[0].set(ylim=(0, 1))
    if any(map(is_test, after)):
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].legend(handles[:1], labels[:1], loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
