"""Evaluation before the first and after the last optimiser step of a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.evaluate import NOTHING, EvaluationResult, Sampler, mean_pass_rate, summarise
from rlvr.evaluation.passes import evaluate_sets
from rlvr.evaluation.sets import EvaluationSets
from rlvr.verification import RewardFunction


class EvaluationCallback(TrainerCallback):
    """Writes `evaluations/before.json` and `after.json`; a resumed run keeps the `before` of its start.

    Each is a list of results, first those of test sets and then, with the role "validation", those of validation sets.
    """

    def __init__(
        self,
        sets: EvaluationSets,
        config: EvaluationConfig,
        functions: Sequence[RewardFunction],
        rewards: RewardsConfig,
        folder: Path,
    ) -> None:
        self.sets, self.config, self.functions, self.rewards, self.folder = sets, config, functions, rewards, folder
        self.sample: Sampler | None = None  # the trainer's, known only once it is built
        self.offers: Mapping[str, Any] = NOTHING  # what the trainer offers to reward functions beside the columns

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (self.folder / "before.json").exists():
            self.run("before")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:  # an interrupted run is not finished: it is evaluated when it is
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
            summarise(name, records[name], self.config, kind)
            for kind in ("test", "validation")
            for name in self.sets.of(kind)
        ]
        if PartialState().is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps([result.to_json() for result in results], indent=2)
            (self.folder / f"{moment}.json").write_text(text + "\n")
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
