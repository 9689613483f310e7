"""Holds the engine that samples to the policy in training: their log-probs of a few sampled tokens must agree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from rlvr.config.rollout import RolloutConfig
from rlvr.errors import RunAborted
from rlvr.gathering import gather_ragged
from rlvr.random_numbers import own_random_numbers
from rlvr.rollout.agreement import Agreement, agreement
from rlvr.seeds import derived_seed

NUM_PROMPTS = 8  # of each process
FLOAT32_TOLERANCE, ROUGH_TOLERANCE = 1e-3, 0.05


@dataclass(frozen=True)
class Host:
    """What the trainer lends."""

    accelerator: Accelerator
    # Of one token after the other, the log-probs [N] of the trainer and of the engine that sampled them, given prompts
    # and a seed; on all ranks together, with equally many prompts.
    probe: Callable[[Sequence[Any], int], tuple[Tensor, Tensor]]
    prompts: Sequence[Any]  # of the whole run
    seed: int
    is_float32: bool  # whether trainer and engine compute in float32
    is_sampling_due: Callable[[], bool]  # whether the next step samples
    record: Callable[[Mapping[str, float]], None]  # metrics of the current step


class EngineCheck(TrainerCallback):
    """Probes the engine before anything else is sampled and, where the recipe says so, before each generation phase.

    A probe has random numbers and prompts of its own: it moves neither the generators of a run nor its data.
    """

    def __init__(self, config: RolloutConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.host: Host | None = None  # the trainer's, known only once it is built
        self._checked_at = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.config.check_engine != "off":
            found = self.check(state.global_step)
            self.console.print(
                f"engine          mean |ratio - 1| of {found.num_tokens} probe tokens is {found.dev_mean:.2g}, at most"
                f" {self._tolerance():g} is allowed"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.host is not None
        is_new = state.global_step != self._checked_at
        if self.config.check_engine == "every_sync" and is_new and self.host.is_sampling_due():
            self.check(state.global_step)

    def check(self, step: int) -> Agreement:
        """How engine and trainer agree at this moment; the same on all ranks. Raises RunAborted where they do not."""
        host = self.host
        assert host is not None
        rank, ranks = host.accelerator.process_index, host.accelerator.num_processes
        places = range(rank, NUM_PROMPTS * ranks, ranks)
        seed = derived_seed(host.seed, "engine", step, rank) % 2**32  # as wide as NumPy takes
        with own_random_numbers():
            set_seed(seed)
            values = host.probe([host.prompts[place % len(host.prompts)] for place in places], seed)
        own, engine = (gather_ragged(host.accelerator, each.to(host.accelerator.device)) for each in values)
        found = agreement(own, engine)
        self._checked_at = step
        host.record(found.metrics())
        if not found.dev_mean <= self._tolerance():
            raise RunAborted(_disagreement(found, self._tolerance()))
        return found

    def _tolerance(self) -> float:
        assert self.host is not None
        own = FLOAT32_TOLERANCE if self.host.is_float32 else ROUGH_TOLERANCE
        return own if self.config.engine_tolerance is None else self.config.engine_tolerance


def _disagreement(found: Agreement, tolerance: float) -> str:
    if not found.num_tokens:
        return (
            "The engine reported no log-probabilities of its tokens, so that it cannot be checked; let it report them,"
            " or set rollout.check_engine to 'off'."
        )
    return (
        f"The engine does not sample from the policy in training: exp(trainer's log-prob - engine's) of"
        f" {found.num_tokens} probe tokens is {found.ratio_mean:.4g} in the mean and off 1 by {found.dev_mean:.3g},"
        f" more than the bound of {tolerance:g} (rollout.engine_tolerance); usual causes are weights that did not reach"
        " the engine, another precision in it, or a temperature, top_p or penalty that it applies by itself."
    )
