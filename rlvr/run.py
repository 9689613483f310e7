"""Runs a recipe: builds the parts, trains, evaluates, and leaves everything in the run directory."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from rich.console import Console
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils.logging import disable_progress_bar

from rlvr import run_directory
from rlvr.building import HintRecord, build_trainer, load_parts, trainer_arguments
from rlvr.checkpointing import folders
from rlvr.checkpointing.retention import Retention
from rlvr.config import LoadedRecipe
from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.errors import RunAborted, UserError
from rlvr.evaluation.callback import EvaluationCallback
from rlvr.evaluation.sets import load_sets
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.processes import join_processes
from rlvr.reporting.console import ProgressCallback, comparison_table
from rlvr.reporting.recorder import RecorderCallback, draw_learning_curve, read_metrics
from rlvr.reporting.report import REPORT_FILE
from rlvr.reporting.report.building import build_report
from rlvr.reporting.token_values import TokenValues
from rlvr.rollout.engine_check import EngineCheck
from rlvr.watching.running import watched


class Interrupted(RunAborted):
    """Ctrl-C: the run saved a checkpoint and can go on."""

    exit_code = 130


class Preempted(RunAborted):
    """SIGTERM: the run saved a checkpoint, and a scheduler that starts the same command with --resume goes on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


# accelerate calls the CPU of a rank "cpu:0" or "cpu:1"; torch.load, which resuming goes through, knows only "cpu".
torch.serialization.register_package(
    5, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def run_recipe(loaded: LoadedRecipe, resume: bool, other_versions: bool = False) -> Path:
    """Trains and evaluates; returns the folder of the saved policy.

    With `resume` it goes on from the newest whole checkpoint, or begins if there is none; with `other_versions` also
    from one that was written with other versions of what it runs on.
    """
    run_directory.claim(loaded, resume)
    _prepare_trackers(loaded)
    state = join_processes(trainer_arguments(loaded))
    disable_progress_bar()  # transformers draws one per weight file, across our own
    console = Console(quiet=not state.is_main_process)
    checkpoint = _newest_whole(loaded.output_dir, state, console) if resume else None
    parts = load_parts(loaded, console)
    sets = load_sets(loaded, parts.tokenizer)
    evaluation = EvaluationCallback(
        sets,
        loaded.recipe.evaluation,
        parts.functions,
        loaded.recipe.rewards,
        loaded.output_dir / "evaluations",
        console,
    )
    recorder = RecorderCallback(loaded.output_dir, loaded.recipe.report.completions_every)
    interrupt = InterruptCallback(console)
    hints = HintRecord(loaded.output_dir / "hints.jsonl", state.is_main_process)
    jumps = periodic_jumps(loaded.recipe.extrapolation, evaluation, console)
    engine = EngineCheck(loaded.recipe.rollout, console)  # first: an engine that is wrong spoils evaluations too
    callbacks = [engine, evaluation, ProgressCallback(console), recorder, interrupt]
    trainer = build_trainer(loaded, parts, callbacks, hints, jumps)
    engine.host = trainer.engine_host()
    evaluation.sample, evaluation.offers, evaluation.record = trainer.sample, trainer.offers, trainer.record
    recorder.latest_completions = lambda: trainer.latest_completions
    if recorder.completions_every and state.is_main_process:
        values = trainer.token_values = TokenValues(loaded.recipe.report.token_values, parts.tokenizer)
        recorder.latest_completions = lambda: values.with_values(trainer.latest_completions)
    trainer.retain = Retention(loaded.recipe.checkpoints, loaded.output_dir)
    if checkpoint is not None:
        kind = trainer.accelerator.distributed_type.value
        run_directory.check_same_setting(checkpoint, state.num_processes, kind, other_versions)
    if state.is_main_process and resume:
        run_directory.rewind(loaded.output_dir, folders.step_of(checkpoint) if checkpoint else 0)
    elif state.is_main_process:
        run_directory.record_start(loaded, state.num_processes)
    state.wait_for_everyone()
    with watched(loaded.recipe.watch, loaded.output_dir, trainer.watch.progress):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.signal is not None:
            state.wait_for_everyone()  # a launcher ends the other processes as soon as one has ended
            raise interrupt.error(loaded.output_dir)
        policy_dir = loaded.output_dir / "policy"
        trainer.save_model(str(policy_dir))
        if state.is_main_process:
            _conclude(loaded, policy_dir, console)
        state.wait_for_everyone()
    return policy_dir


def _newest_whole(run_dir: Path, state: PartialState, console: Console) -> Path | None:
    """The checkpoint to go on from; None where none is whole."""
    if state.is_main_process:
        folders.remove_leftovers(run_dir)
    state.wait_for_everyone()
    found = folders.find_newest(run_dir)
    for sentence in found.skipped:
        console.print(sentence)
    console.print(f"going on from {found.newest}" if found.newest else "no checkpoint is whole: beginning anew")
    return found.newest


def periodic_jumps(
    config: ExtrapolationConfig | None, evaluation: EvaluationCallback, console: Console
) -> PeriodicJumps | None:
    """The jumps of the recipe, judged by the evaluation's validation sets if it says so; None where it has none."""
    if config is None:
        return None
    return PeriodicJumps(config, console, evaluation.validate if config.validate else None)


def _prepare_trackers(loaded: LoadedRecipe) -> None:
    """wandb without a key writes offline instead of asking. Raises UserError for a tracker that is not installed."""
    for tracker in loaded.recipe.report.to:
        if tracker != "none" and run_directory.installed_version(tracker) is None:
            raise UserError(f"report.to: {tracker} is not installed; run pip install {tracker}, or choose another.")
    os.environ.setdefault("WANDB_PROJECT", loaded.recipe.report.project)
    os.environ.setdefault("WANDB_DIR", str(loaded.output_dir))
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_RUN_ID", run_directory.tracker_id(loaded.output_dir))
    os.environ.setdefault("WANDB_RESUME", "allow")
    netrc = Path("~/.netrc").expanduser()
    has_key = "WANDB_API_KEY" in os.environ or (netrc.exists() and "api.wandb.ai" in netrc.read_text())
    if not has_key:
        os.environ.setdefault("WANDB_MODE", "offline")


def _conclude(loaded: LoadedRecipe, policy_dir: Path, console: Console) -> None:
    folder = loaded.output_dir / "evaluations"
    before, after = (json.loads((folder / f"{moment}.json").read_text()) for moment in ("before", "after"))
    if before:
        console.print(comparison_table(before, after))
    picture = loaded.output_dir / "learning_curve.png"
    draw_learning_curve(read_metrics(loaded.output_dir), before, after, picture)
    report = loaded.output_dir / REPORT_FILE
    build_report([loaded.output_dir], report)
    console.print(
        f"policy          {policy_dir}\nlearning curve  {picture}\nmetrics         {loaded.output_dir}/metrics.jsonl\n"
        f"report          {report}"
    )


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C, or a scheduler's SIGTERM, ends the run after the current step with a checkpoint.

    A second Ctrl-C ends it at once. The ranks agree on the step, because the signal reaches them at different moments.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.signal: int | None = None  # the one that ends the run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}

    def _request(self, number: int, frame: Any) -> None:
        if self.signal is None:
            again = " (Ctrl-C again to stop at once)" if number == signal.SIGINT else ""
            self.console.print(f"Interrupted: saving a checkpoint after this step{again}.")
            self.signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        process = PartialState()
        if process.num_processes > 1:
            number = torch.tensor([self.signal or 0], device=process.device)
            self.signal = int(gather(number).max()) or None  # SIGTERM where ranks were sent different ones
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    def error(self, run_dir: Path) -> RunAborted:
        """What the run ends with, once it has saved."""
        newest = folders.find_newest(run_dir).newest
        # The recipe in the run directory holds the overrides of this command as well.
        advice = f"Go on with: rlvr train {run_dir / 'recipe.yaml'} --resume"
        if self.signal == signal.SIGTERM:
            return Preempted(f"Stopped by SIGTERM; saved {newest}. {advice}")
        return Interrupted(f"Interrupted; saved {newest}. {advice}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
