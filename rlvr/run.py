"""Runs a recipe: builds the parts, trains, evaluates, and leaves everything in the run directory."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
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
from rlvr.config import LoadedRecipe
from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.errors import RunAborted, UserError
from rlvr.evaluation.callback import EvaluationCallback
from rlvr.evaluation.sets import load_sets
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.reporting.console import ProgressCallback, comparison_table
from rlvr.reporting.recorder import RecorderCallback, draw_learning_curve, read_metrics
from rlvr.rollout.engine_check import EngineCheck


class Interrupted(RunAborted):
    """Ctrl-C: the run saved a checkpoint and can go on."""

    exit_code = 130


# accelerate calls the CPU of a rank "cpu:0" or "cpu:1"; torch.load, which resuming goes through, knows only "cpu".
torch.serialization.register_package(
    5, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def run_recipe(loaded: LoadedRecipe, resume: bool) -> Path:
    """Trains and evaluates; returns the folder of the saved policy."""
    run_directory.claim(loaded, resume)
    _prepare_trackers(loaded)
    state = PartialState(cpu=trainer_arguments(loaded)["use_cpu"])
    disable_progress_bar()  # transformers draws one per weight file, across our own
    console = Console(quiet=not state.is_main_process)
    parts = load_parts(loaded, console)
    sets = load_sets(loaded, parts.tokenizer)
    evaluation = EvaluationCallback(
        sets, loaded.recipe.evaluation, parts.functions, loaded.recipe.rewards, loaded.output_dir / "evaluations"
    )
    recorder = RecorderCallback(loaded.output_dir, loaded.recipe.report.completions_every)
    interrupt = InterruptCallback(console)
    hints = HintRecord(loaded.output_dir / "hints.jsonl", state.is_main_process)
    jumps = periodic_jumps(loaded.recipe.extrapolation, evaluation, console)
    engine = EngineCheck(loaded.recipe.rollout, console)  # first: an engine that is wrong spoils evaluations too
    callbacks = [engine, evaluation, ProgressCallback(console), recorder, interrupt]
    trainer = build_trainer(loaded, parts, callbacks, hints, jumps)
    engine.host = trainer.engine_host()
    evaluation.sample, evaluation.offers = trainer.sample, trainer.offers
    recorder.latest_completions = lambda: trainer.latest_completions
    if state.is_main_process and not resume:
        run_directory.record_start(loaded, state.num_processes)
    state.wait_for_everyone()
    checkpoint = run_directory.newest_checkpoint(loaded.output_dir) if resume else None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interrupt.requested:
        newest = run_directory.newest_checkpoint(loaded.output_dir)
        # The recipe in the run directory holds the overrides of this command as well.
        recipe = loaded.output_dir / "recipe.yaml"
        raise Interrupted(f"Interrupted; saved {newest}. Go on with: rlvr train {recipe} --resume")
    policy_dir = loaded.output_dir / "policy"
    trainer.save_model(str(policy_dir))
    if state.is_main_process:
        _conclude(loaded, policy_dir, console)
    state.wait_for_everyone()
    return policy_dir


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
    console.print(
        f"policy          {policy_dir}\nlearning curve  {picture}\nmetrics         {loaded.output_dir}/metrics.jsonl"
    )


class InterruptCallback(TrainerCallback):
    """The first Ctrl-C, or a scheduler's SIGTERM, ends the run after the current step with a checkpoint.

    A second Ctrl-C ends it at once. The ranks agree on the step, because the signal reaches them at different moments.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.requested = console, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}

    def _request(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.console.print("Interrupted: saving a checkpoint after this step (Ctrl-C again to stop at once).")
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self.previous[signal.SIGINT])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        process = PartialState()
        if process.num_processes > 1:
            flag = torch.tensor([float(self.requested)], device=process.device)
            self.requested = reduce(flag, reduction="sum").item() > 0
        if self.requested:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
