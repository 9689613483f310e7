"""What a person sees in the terminal while a run goes on, and at its end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.evaluation.outcomes import difference_by_prompt, kept_outcomes
from rlvr.progress_bars import progress_columns

LINES_WITHOUT_TERMINAL = 10  # progress lines of a whole run when the output goes to a file


def step_note(logs: Mapping[str, Any]) -> str:
    """The three numbers to watch, from one log record."""
    return (
        f"reward {logs['reward/mean']:.2f}  pass {logs['outcome/pass_rate']:.2f}"
        f"  entropy {logs['entropy/mean_token']:.3f}"
    )


class ProgressCallback(TrainerCallback):
    """A progress bar on the main process; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(*progress_columns(), console=console)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = self.progress.add_task("train", total=state.max_steps, completed=state.global_step, note="")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Started here and not with the training: the evaluation before it draws a bar of its own.
        if state.is_world_process_zero:
            self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.update(self.bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "reward/mean" not in logs or not state.is_world_process_zero:
            return
        self.progress.update(self.bar, note=step_note(logs))
        every = max(1, state.max_steps // LINES_WITHOUT_TERMINAL)
        if not self.console.is_terminal and state.global_step % every == 0:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {step_note(logs)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.stop()


def comparison_table(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Table:
    """Before and after of every evaluated set, with 95% intervals over prompts."""
    sizes = ", ".join(f"{a['name']}: {a['num_prompts']} prompts x {a['num_samples']} samples" for a in after)
    table = Table(title="before and after, mean over prompts [95% bootstrap interval]", caption=sizes)
    table.add_column("metric")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for old, new in zip(before, after, strict=True):
        name = old["name"] if is_test(old) else f"{old['name']} (validation)"
        starts, ends = old["estimates"], new["estimates"]
        for metric in dict.fromkeys([*starts, *ends]):  # a set of which no prompt got all of its verdicts has none
            change = _change(old, new, metric) if metric in starts and metric in ends else ""
            table.add_row(f"{name} {metric}", _interval(starts.get(metric)), _interval(ends.get(metric)), change)
        for metric, label in (("mean_length", "tokens"), ("truncated_frac", "truncated")):
            change = f"{new[metric] - old[metric]:+.2f}"
            table.add_row(f"{name} {label}", f"{old[metric]:.2f}", f"{new[metric]:.2f}", change)
    return table


def _change(old: Mapping[str, Any], new: Mapping[str, Any], metric: str) -> str:
    """Over the prompts that both have verdicts for, with the paired interval; older runs kept no outcomes."""
    kept = [each.get("outcomes") for each in (new, old)]
    paired = None
    if None not in kept:
        paired = difference_by_prompt(*(kept_outcomes(each) for each in kept), metric, seed=0)
    if paired is None:
        return f"{new['estimates'][metric]['value'] - old['estimates'][metric]['value']:+.3f}"
    found = paired.difference
    return f"{found.value:+.3f}\n[{found.low:+.2f}, {found.high:+.2f}]"


def is_test(result: Mapping[str, Any]) -> bool:
    """Whether an entry of `evaluations/*.json` is of a test set; those of older runs all are."""
    return result.get("role", "test") == "test"


def _interval(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "none scored"
    return f"{estimate['value']:.3f}\n[{estimate['low']:.2f}, {estimate['high']:.2f}]"
