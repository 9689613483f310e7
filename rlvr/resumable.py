"""Saving and going on, on TRL's trainer: the seam for checkpoints, as rlvr/trainer.py is the seam for the step."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Sampler
from trl import GRPOTrainer

from rlvr.checkpointing import folders
from rlvr.checkpointing.progress import Progress, load_progress, save_progress
from rlvr.errors import RunAborted
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.plugins import Stateful, load_plugins, save_plugins
from rlvr.run_directory import versions
from rlvr.sampling import ReplayedOrder
from rlvr.verification import Judge

TORCH_WRITER = ("inline_container", "PytorchStreamWriter")  # in the message of torch.save where a disk is full


class ResumableTrainer(GRPOTrainer):
    """A trainer whose checkpoints are whole or absent, and which goes on from one as if it had never stopped.

    Where steps of a generation are left, it goes on with the same completions; where none are, it samples with the same
    random numbers. Prompts come in the same order in every epoch. On the CPU that makes weights and metrics, times
    apart, equal to the bit.
    """

    jumps: PeriodicJumps | None
    latest_completions: dict[str, list[Any]]
    retain: Callable[[], None] | None = None  # after each save, on the main process
    _saving_into: str | None = None

    @property
    @abstractmethod
    def plugins(self) -> Mapping[str, Stateful]:
        """What remembers something from step to step, by name."""

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """Who judges completions in this process."""

    # ---- the order of prompts ---------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return ReplayedOrder(partial(super()._get_train_sampler, dataset), self._epoch)

    def _epoch(self) -> int:
        """The number of the pass over the prompts that is about to begin."""
        prompts = self.args.generation_batch_size // self.num_generations
        generations = len(self.train_dataset) // prompts
        steps_each = self.num_iterations * self.args.steps_per_generation // self.args.gradient_accumulation_steps
        epoch: int = self.state.global_step // (generations * steps_each)
        return epoch

    def _run_epoch(self, **kwargs: Any) -> None:
        """A run that was killed between its last step and its end has no step left, of which transformers takes one."""
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            self.model.train()  # as after a step, or else TRL closes the metrics of evaluations
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)

    # ---- saving -----------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers puts the folder of a checkpoint: aside, while it is being written."""
        return self._saving_into or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir, step = Path(self.args.output_dir), self.state.global_step
        self._saving_into = str(run_dir / folders.SAVING)
        folder = run_dir / folders.SAVING / folders.name_of(step)
        with self._explained(step):
            super()._save_checkpoint(model, trial)
            save_progress(self._progress(), folder, self.accelerator.process_index)
            if self.jumps is not None:
                self.jumps.save(folder, step)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_plugins(folder, self.plugins)
                folders.publish(run_dir, step, self._facts())
                if self.retain is not None:
                    self.retain()
        self._saving_into = None
        self.accelerator.wait_for_everyone()

    def _facts(self) -> dict[str, Any]:
        """What a run must have in common with this one to go on from its checkpoints."""
        return {
            "num_processes": self.accelerator.num_processes,
            "engine": self.accelerator.distributed_type.value,
            "versions": versions(),
        }

    def _progress(self) -> Progress:
        """This process's share of what the next step takes from this one."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        return Progress(
            batches=self._buffered_inputs if self._step % generate_every else None,
            metrics=dict(self._metrics["train"]),
            loss_sum=self._tr_loss,
            last_logged=self._globalstep_last_logged,
            completions=self.latest_completions,
            judge=self.judge.state_dict(),
        )

    @contextmanager
    def _explained(self, step: int) -> Iterator[None]:
        """Turns a failure to write into one sentence; what was saved before stays."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if type(error) is RuntimeError and not any(name in str(error) for name in TORCH_WRITER):
                raise
            earlier = folders.find_newest(Path(self.args.output_dir)).newest
            kept = f"{earlier} is whole: make room, then go on from it with --resume" if earlier else "none was before"
            reason = str(error).strip().splitlines()[0]
            raise RunAborted(f"The checkpoint of step {step} could not be written ({reason}); {kept}.") from error

    # ---- going on ---------------------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        load_plugins(Path(checkpoint), self.plugins)
        if self.jumps is not None:
            self.jumps.resume_from(Path(checkpoint))
        self._step = self.state.global_step * self.args.gradient_accumulation_steps

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The last that transformers does before the first step: what it has set to nothing meanwhile is put back."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        progress = load_progress(Path(checkpoint), self.accelerator.process_index, self.accelerator.device)
        self._buffered_inputs = progress.batches
        self._metrics["train"].update(progress.metrics)
        self._tr_loss, self._globalstep_last_logged = progress.loss_sum, progress.last_logged
        self.latest_completions = progress.completions
        self.judge.load_state_dict(progress.judge)
