"""Evaluation before the first and after the last optimiser step of a run, and on a schedule between."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.evaluate import NOTHING, EvaluationResult, Sampler, mean_pass_rate, results_text, summarise
from rlvr.evaluation.passes import evaluate_sets
from rlvr.evaluation.plateau import EarlyStop
from rlvr.evaluation.sets import EvaluationSets, prompt_keys
from rlvr.files import write_whole
from rlvr.verification import RewardFunction


class EvaluationCallback(TrainerCallback):
    """Writes `evaluations/before.json`, `step-000010.json`, ... and `after.json`; a resumed run keeps what it finds.

    Each is a list of results, first those of test sets and then, with the role "validation", those of validation sets.
    """

    def __init__(
        self,
        sets: EvaluationSets,
        config: EvaluationConfig,
        functions: Sequence[RewardFunction],
        rewards: RewardsConfig,
        folder: Path,
        console: Console,
    ) -> None:
        self.sets, self.config, self.functions, self.rewards, self.folder = sets, config, functions, rewards, folder
        self.early_stop = None if config.early_stop is None else EarlyStop(config.early_stop, folder, console)
        self.sample: Sampler | None = None  # the trainer's, known only once it is built
        self.offers: Mapping[str, Any] = NOTHING  # what the trainer offers to reward functions beside the columns
        self.record: Callable[[Mapping[str, float]], None] | None = None  # metrics of the current step, likewise

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (self.folder / "before.json").exists():
            self.run("before")
        # A run that had ended on a plateau, and is resumed, has ended.
        control.should_training_stop = self.early_stop is not None and self.early_stop.look(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.config.every is None or state.global_step % self.config.every:
            return
        assert self.record is not None
        started = time.perf_counter()
        results = self.run(f"step-{state.global_step:06d}")
        values = {f"eval/{r.name}/{metric}": each.value for r in results for metric, each in r.estimates.items()}
        self.record(values | {"time/evaluate_s": time.perf_counter() - started})
        if self.early_stop is not None and self.early_stop.look(state.global_step):
            control.should_training_stop = control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_stopped = self.early_stop is not None and self.early_stop.has_come
        if is_stopped or state.global_step >= state.max_steps:  # an interrupted run is evaluated when it has ended
            self.run("after")

    def run(self, moment: str) -> list[EvaluationResult]:
        """Evaluates every set on all ranks, with random numbers of its own, and writes `moment`.json."""
        assert self.sample is not None
        records = evaluate_sets(
            {**self.sets.test, **self.sets.validation},
            self.sample,
            self.functions,
            self.rewards,
            self.config,
            offers=self.offers,
            label=lambda name: f"evaluate {name} {moment}",
        )
        results = [
            summarise(name, records[name], self.config, kind, prompt_keys(data))
            for kind in ("test", "validation")
            for name, data in self.sets.of(kind).items()
        ]
        if PartialState().is_main_process:
            write_whole(self.folder / f"{moment}.json", results_text(results))
        return results

    def validate(self, moment: str, console: Console) -> float:
        """The mean pass@1 on the validation sets, on all ranks and without greedy answers; nothing is written."""
        assert self.sample is not None
        records = evaluate_sets(
            self.sets.validation,
            self.sample,
            self.functions,
            self.rewards,
            self.config.model_copy(update={"greedy": False}),
            offers=self.offers,
            label=lambda name: f"validate {name} {moment}",
            console=console,
        )
        return mean_pass_rate(records)
