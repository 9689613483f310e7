"""What the trainer tells of itself at each step: where it is, and whether loss and gradient are finite."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlvr.config.watch import WatchConfig
from rlvr.errors import RunAborted
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch
from rlvr.watching.progress import Progress
from rlvr.watching.saved_batch import SeenBatch, plain, save_batches

FOLDER = "nonfinite"  # of the run directory
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Step:
    """The optimiser step under way."""

    number: int  # as metrics.jsonl counts, from 1
    run_dir: Path
    tokenizer: PreTrainedTokenizerBase


class Watch(TrainerCallback):
    """Stops the run at a step whose loss or gradient is not finite, or leaves the step out if the recipe says so.

    All processes decide the same: totals of the loss and the norm of the gradient are of all of them. A step that is
    left out changes neither weights, moments, the learning rate's schedule nor what regularisers remember, and counts
    as a step otherwise. DeepSpeed, which takes its step within the backward pass, leaves such steps out by itself.
    """

    def __init__(self, config: WatchConfig | None = None) -> None:
        self.config, self.progress = config or WatchConfig(), Progress()
        self.skips = self.config.on_nonfinite == "skip"
        self.stateful = self if self.skips else None  # what checkpoints keep
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._is_rejected = False
        self._seen: list[SeenBatch] = []
        self._step: _Step | None = None

    def state_dict(self) -> dict[str, int]:
        return {"skipped_steps": self.skipped_steps, "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped_steps, self._skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]

    # ---- what the trainer tells ---------------------------------------------------------------------------------

    def enter(self, stage: str) -> float:
        """The process begins a stage; returns when, in seconds of time.perf_counter."""
        return self.progress.enter(stage)

    def see(self, batch: Microbatch, stats: TokenStats, metrics: Mapping[str, Tensor]) -> None:
        """A micro-batch with the policy's statistics [b, T] and its shares of the step's metrics."""
        self.progress.enter("loss")
        assert stats.entropy is not None
        terms = {name: value for name, value in metrics.items() if name.startswith("loss/")}
        self._seen.append(SeenBatch(batch, stats.logprobs.detach(), stats.entropy.detach(), terms))

    def check_loss(self, metrics: Mapping[str, float]) -> bool:
        """Whether all terms of the loss, totals of the step over all processes, are finite.

        Raises RunAborted if they are not and such steps are not skipped.
        """
        bad = {name: value for name, value in metrics.items() if name.startswith("loss/") and not math.isfinite(value)}
        if bad:
            self._reject(f"the loss ({', '.join(bad)})", {"terms": {name: plain(value) for name, value in bad.items()}})
        return not bad

    def check_gradient(self, norm: Tensor | float | None) -> dict[str, float]:
        """Ends the step's checks by the norm of the whole gradient, None where the engine does not tell it.

        Returns metrics. Raises RunAborted if it is not finite and such steps are not skipped. Under fp16 it often is
        not: the loss scaler sees to that.
        """
        if not self._is_rejected and norm is not None and AcceleratorState().mixed_precision != "fp16":
            value = float(norm)
            if not 0 <= value < math.inf:  # DeepSpeed may tell -1 for what is not finite
                self._reject("the gradient", {"grad_norm": plain(value)})
        if not self._is_rejected:
            self._skipped_in_a_row = 0
        self._seen = []
        return {"watch/skipped_steps": float(self.skipped_steps)} if self.skips else {}

    def _reject(self, what: str, facts: Mapping[str, Any]) -> None:
        step = self._step
        assert step is not None
        first = step.number - self._skipped_in_a_row
        folders = step.run_dir / FOLDER / f"step-{first}-rank-*"
        if first == step.number:
            self._save(step, what, facts)
        if not self.skips:
            raise RunAborted(
                f"Step {step.number}: {what} is not finite; its batch is in {folders}. Checkpoints are from before that"
                " step; a new run with watch.on_nonfinite set to 'skip' leaves such steps out."
            )
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        self._is_rejected = True
        if self._skipped_in_a_row >= self.config.max_skipped:
            raise RunAborted(
                f"Step {step.number}: {what} is not finite, as it was in all of the last {self._skipped_in_a_row} steps"
                f" (watch.max_skipped); the batch of the first is in {folders}."
            )
        if PartialState().is_main_process:
            logger.warning("step %d: %s is not finite; the step is skipped, see %s", step.number, what, folders)

    def _save(self, step: _Step, what: str, facts: Mapping[str, Any]) -> None:
        """On every process; none goes on before all have written, as the first to end takes the others with it."""
        process = PartialState()
        about = {"step": step.number, "rank": process.process_index, "not_finite": what, **facts}
        folder = step.run_dir / FOLDER / f"step-{step.number}-rank-{process.process_index}"
        save_batches(folder, self._seen, about, step.tokenizer)
        process.wait_for_everyone()

    # ---- events -------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.enter("beginning of training", state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.enter("step", state.global_step)
        self._step = _Step(state.global_step + 1, Path(str(args.output_dir)), kwargs["processing_class"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.enter("optimizer")
        optimizer = kwargs["optimizer"]
        if not self._is_rejected:
            return
        if PartialState().distributed_type != DistributedType.DEEPSPEED:
            optimizer.zero_grad()  # to None, with which the optimiser passes a tensor over
            optimizer._is_overflow = True  # what accelerate notes when the loss scaler skips: the schedule waits too
        elif not optimizer.step_was_skipped:
            raise RunAborted(
                f"Step {state.global_step + 1}: the loss is not finite but DeepSpeed found the gradient to be, and took"
                " the step; go on from the last checkpoint."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.enter("end of step", state.global_step)
        if self._is_rejected and PartialState().distributed_type != DistributedType.DEEPSPEED:
            kwargs["optimizer"]._is_overflow = False
        self._is_rejected = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.enter("saved")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.enter("end of training")
