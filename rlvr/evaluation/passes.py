"""One evaluation of a policy on held-out sets, by all processes together: the only place where sets are sampled."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from transformers import set_seed

from rlvr.config.schema import EvaluationConfig, RewardsConfig
from rlvr.evaluation.evaluate import NOTHING, Sampler, evaluate_rows
from rlvr.evaluation.records import PromptRecord
from rlvr.progress_bars import progress_columns
from rlvr.random_numbers import own_random_numbers
from rlvr.verification import RewardFunction


def evaluate_sets(
    sets: Mapping[str, Dataset],
    sample: Sampler,
    functions: Sequence[RewardFunction],
    rewards: RewardsConfig,
    config: EvaluationConfig,
    *,
    offers: Mapping[str, Any] = NOTHING,
    label: Callable[[str], str],
    console: Console | None = None,
) -> dict[str, list[PromptRecord]]:
    """The records of every prompt, by set and the same on all processes, which share the rows of a set.

    Every set is sampled with random numbers of its own, from `config.seed`, so that models are compared on the same
    draws and no generator of a run moves. `offers` are arguments that reward functions may take beside the columns;
    `label` says what the progress bar of a set is called.
    """
    state = PartialState()
    found = {}
    with (
        own_random_numbers(),
        Progress(*progress_columns(), console=console, disable=not state.is_main_process) as progress,
    ):
        for name, data in sets.items():
            set_seed(config.seed + state.process_index)
            rows = _rank_rows(data, state.process_index, state.num_processes)
            bar = progress.add_task(label(name), total=len(rows) * (config.num_samples + config.greedy), note="")
            advance = partial(progress.advance, bar)
            heat = config.temperatures.get(name, config.temperature)
            own = config.model_copy(update={"temperature": heat})
            records = evaluate_rows(rows, sample, functions, rewards, own, advance, offers)
            unique: dict[int, PromptRecord] = {record.prompt_id: record for record in gather_object(records)}
            found[name] = list(unique.values())
    return found


def _rank_rows(data: Dataset, rank: int, num_ranks: int) -> list[dict[str, Any]]:
    """Every num_ranks-th row; the last ones repeat so that all ranks generate equally often."""
    rows_each = -(-len(data) // num_ranks)
    return [data[min(rank + index * num_ranks, len(data) - 1)] for index in range(rows_each)]
