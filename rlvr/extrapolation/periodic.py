"""RL-Extra: phases of real optimiser steps, each ended by a jump along the line from its start to its end.

arXiv 2601.04537, where later versions call it periodic re-grounding.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.errors import CheckpointError, ExtrapolationError
from rlvr.extrapolation.local_weights import LocalWeights, all_names, local_weights, trained_parameters
from rlvr.extrapolation.operations import extrapolate
from rlvr.extrapolation.rules import Rules, treatments_of

START_FILE = "phase-start-{:05d}.safetensors"  # in a checkpoint within a phase, by process

# ---- Adam's moments --------------------------------------------------------------------------------------------------


def reset_moments(states: Iterable[Mapping[str, Tensor]]) -> None:
    """Makes each tensor's state of Adam that of a new optimiser: m = v = 0, t = 0, in place."""
    for state in states:
        for name in ("exp_avg", "exp_avg_sq", "step"):
            state[name].zero_()


def age_first_moments(states: Iterable[Mapping[str, Tensor]], beta1: float, steps: int) -> None:
    """m <- beta1^steps m, in place; v and t stay.

    What Adam's running mean of gradients [any shape] still weighs after `steps` steps of which it saw no gradient.
    """
    for state in states:
        state["exp_avg"].mul_(beta1**steps)


def adam_states(states: Mapping[Any, MutableMapping[str, Any]]) -> list[MutableMapping[str, Tensor]]:
    """The states of all tensors of an optimiser. Raises ExtrapolationError unless they are those of torch's Adam."""
    wanted = {"exp_avg", "exp_avg_sq", "step"}
    kept = [{name for name, each in state.items() if torch.is_tensor(each)} for state in states.values()]
    if not kept or not all(wanted <= names for names in kept):
        found = ", ".join(sorted(set().union(*kept))) or "nothing"
        raise ExtrapolationError(
            f"The optimiser keeps {found} of a tensor, not the moments and step of torch's Adam; set"
            " extrapolation.moments to 'keep'."
        )
    return list(states.values())


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """What the trainer lends."""

    accelerator: Accelerator
    record: Callable[[Mapping[str, float]], None]  # metrics of the current step
    forget_rollouts: Callable[[], None]  # the weights were replaced: whatever was made with the old ones is stale


class PeriodicJumps(TrainerCallback):
    """Jumps after every `train_steps` steps of a run, the last one included, and remembers where phases start.

    `validate` is told the moment and returns the policy's mean pass@1 on the validation sets, on all processes together
    and without touching the random numbers of training; a jump after which it is lower is undone.
    """

    def __init__(
        self,
        config: ExtrapolationConfig,
        console: Console,
        validate: Callable[[str, Console], float] | None = None,
    ) -> None:
        self.config, self.console, self._validate = config, console, validate
        self._rules = Rules(tuple(config.copies), (), config.default_copies)
        self._start: dict[str, Tensor] = {}  # on the CPU, this process's shares of the weights that jump
        self._checkpoint: Path | None = None

    def attach(self, host: Host, model: Module) -> None:
        """Raises ExtrapolationError for a policy whose weights cannot be extrapolated, or rules that do not fit it."""
        self.host = host
        policy = host.accelerator.unwrap_model(model)
        if isinstance(policy, PeftModel):
            raise ExtrapolationError(
                "The policy has adapters, whose factors A and B do not move on a line when their product does; train"
                " all weights, or leave the extrapolation section out."
            )
        if not self._moving_names(policy):
            raise ExtrapolationError(
                "The rules of the extrapolation section leave no tensor of the policy to jumps; give fewer copies."
            )

    def resume_from(self, checkpoint: Path) -> None:
        """Says where the run goes on: a phase that its checkpoint cuts is continued from the same start."""
        self._checkpoint = checkpoint

    def state_dict(self) -> dict[str, Tensor]:
        """This process's shares of the weights at the start of the phase."""
        return dict(self._start)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError if these are not shares of the same tensors and sizes."""
        expected = {name: share.shape for name, share in self._start.items()}
        if {name: share.shape for name, share in state.items()} != expected:
            raise CheckpointError(
                f"{self._checkpoint} holds other shares of the weights at the start of its phase than this run; resume"
                " with the model, number of processes and engine of the run that wrote it."
            )
        for name, share in state.items():
            self._start[name].copy_(share)

    # ---- events -----------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, self._optimizer = kwargs["model"], kwargs["optimizer"]
        moving = self._moving_names(self.host.accelerator.unwrap_model(model))
        self._weights: LocalWeights = local_weights(model, self._optimizer, self.host.accelerator)
        self._start = {
            name: self._weights.read(name).to("cpu", copy=True) for name in self._weights.names() if name in moving
        }
        if state.global_step % self.config.train_steps:
            assert self._checkpoint is not None
            self.load_state_dict(read_tensors(self._checkpoint / self._start_file()))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.config.train_steps == 0:
            started = time.perf_counter()
            metrics = self._end_phase(state.global_step)
            self.host.record(metrics | {"time/extrapolate_s": time.perf_counter() - started})

    def save(self, checkpoint: Path, step: int) -> None:
        """Called by all processes for the checkpoint of a step.

        At the start of a phase nothing is written, as the checkpoint's own weights are the start.
        """
        is_main = self.host.accelerator.is_main_process
        if step % self.config.train_steps and (self._weights.is_sharded or is_main):
            write_tensors(self.state_dict(), checkpoint / self._start_file())

    # ---- a jump -----------------------------------------------------------------------------------------------------

    def _end_phase(self, step: int) -> dict[str, float]:
        """Jumps, goes back if that did not help, and begins the next phase; returns the metrics."""
        before = self._validate("before jump", self.console) if self._validate else None
        self._jump()
        after = self._validate("after jump", self.console) if self._validate else None
        metrics = {"extrapolation/jump": 1.0, "extrapolation/beta": self.config.beta, "extrapolation/undone": 0.0}
        if before is not None and after is not None:
            metrics |= {"extrapolation/validation_before": before, "extrapolation/validation_after": after}
            if after < before:
                metrics["extrapolation/undone"] = 1.0
                self._go_back()
                self.console.print(
                    f"step {step}: the jump of {self.config.skip_steps} steps is undone, as it took validation pass@1"
                    f" from {before:.3f} to {after:.3f}"
                )
                return metrics
        self._renew_moments()
        for name, start in self._start.items():
            start.copy_(self._weights.read(name))
        return metrics

    def _jump(self) -> None:
        """W0 + beta (W1 - W0) in the model, and W1 in the place of W0, should the next phase begin there after all."""
        for name, start in self._start.items():
            end = self._weights.read(name)
            reached = extrapolate(start.to(end.device), end, self.config.beta)
            start.copy_(end)
            self._weights.write(name, reached)
        self._weights.publish()
        self.host.forget_rollouts()

    def _go_back(self) -> None:
        for name, start in self._start.items():
            self._weights.write(name, start)
        self._weights.publish()
        self.host.forget_rollouts()

    def _renew_moments(self) -> None:
        states = adam_states(self._optimizer.state) if self.config.moments != "keep" else []
        if self.config.moments == "reset":
            reset_moments(states)
        elif self.config.moments == "rescale":
            age_first_moments(states, self._optimizer.param_groups[0]["betas"][0], self.config.skip_steps)

    # ---- helpers ----------------------------------------------------------------------------------------------------

    def _moving_names(self, policy: Module) -> set[str]:
        """The trained tensors of an unwrapped model that jumps are for."""
        dtypes = {name: each.dtype for name, each in trained_parameters(policy).items()}
        chosen = treatments_of(all_names(policy), dtypes, self._rules, "the policy")
        return {name for name, treatment in chosen.items() if not treatment.copied}

    def _start_file(self) -> str:
        return START_FILE.format(self.host.accelerator.process_index if self._weights.is_sharded else 0)


# ---- the start of a phase in a checkpoint ----------------------------------------------------------------------------


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file of CPU tensors, which appears under its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: each.contiguous() for name, each in tensors.items()}, partial, {"format": "pt"})
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), and the checkpoint lies within a phase, whose start it holds; remove the"
            " checkpoint's folder and resume from the one before it"
        ) from error
