"""Evaluation before the first and after the last optimiser step of a run."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from rich.progress import Progress
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.evaluate import EvaluationResult, Sampler, evaluate_rows, summarise
from rlvr.reporting.console import progress_columns
from rlvr.verification import RewardFunction


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Puts every generator back as it was: rewards may draw from `random` or NumPy as well as from torch."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class EvaluationCallback(TrainerCallback):
    """Writes `evaluations/before.json` and `after.json`; a resumed run keeps the `before` of its start."""

    def __init__(
        self,
        sets: Mapping[str, Dataset],
        config: EvaluationConfig,
        functions: Sequence[RewardFunction],
        rewards: RewardsConfig,
        folder: Path,
    ) -> None:
        self.sets, self.config, self.functions, self.rewards, self.folder = sets, config, functions, rewards, folder
        self.sample: Sampler | None = None  # the trainer's, known only once it is built
        self.accelerator: Accelerator | None = None
        self.offers: Mapping[str, Any] = {}  # what the trainer offers to reward functions beside the columns

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
        assert self.accelerator is not None
        accelerator = self.accelerator
        results = []
        with (
            own_random_numbers(),
            Progress(*progress_columns(), disable=not accelerator.is_main_process) as progress,
        ):
            for name, data in self.sets.items():
                set_seed(self.config.seed + accelerator.process_index)
                rows = _rank_rows(data, accelerator.process_index, accelerator.num_processes)
                total = len(rows) * (self.config.num_samples + self.config.greedy)
                bar = progress.add_task(f"evaluate {name} {moment}", total=total, note="")
                records = evaluate_rows(
                    rows,
                    self.sample,
                    self.functions,
                    self.rewards,
                    self.config,
                    partial(progress.advance, bar),
                    self.offers,
                )
                unique = {record.prompt_id: record for record in gather_object(records)}
                results.append(summarise(name, list(unique.values()), self.config))
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps([result.to_json() for result in results], indent=2)
            (self.folder / f"{moment}.json").write_text(text + "\n")
        return results


def _rank_rows(data: Dataset, rank: int, num_ranks: int) -> list[dict[str, Any]]:
    """Every num_ranks-th row; the last ones repeat so that all ranks generate equally often."""
    rows_each = -(-len(data) // num_ranks)
    return [data[min(rank + index * num_ranks, len(data) - 1)] for index in range(rows_each)]
