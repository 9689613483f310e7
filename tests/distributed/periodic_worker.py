"""Trains with periodic jumps on the fixed rollouts and saves the weights: periodic_worker.py FOLDER PROCESSES CASE...

By Adam with a large epsilon: where it is small, gradients that differ by rounding only can give different steps.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback

import rlvr.run  # noqa: F401 - on CPU ranks it lets torch.load read the optimiser's state
from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.extrapolation.periodic import PeriodicJumps
from rlvr.trainer import RLVRTrainer
from tests.distributed.sharded_worker import model_of, prepared_engine
from tests.distributed.worker import one_step_trainer

STEPS, SAVED = 5, 3  # the checkpoint is of the middle of the second phase
PHASES: dict[str, Any] = {"train_steps": 2, "skip_steps": 4}
ADAM: dict[str, Any] = {"learning_rate": 0.1, "adam_epsilon": 0.1, "weight_decay": 0.0}

# name: (settings of the jumps, rates that judge them, other trainer arguments)
CASES: dict[str, tuple[dict[str, Any] | None, list[float], dict[str, Any]]] = {
    "jumps": ({"moments": "rescale"}, [], {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED}),
    "reset": ({"moments": "reset"}, [], {"max_steps": 3}),
    "undone": ({"moments": "keep"}, [0.5, 0.4], {"max_steps": 2}),
    "plain": (None, [], {"max_steps": 2}),
}
# Under ZeRO, whose float32 weights are apart from those of a model in bfloat16. The last step ends with the jump.
BF16_CASES: dict[str, tuple[dict[str, Any] | None, list[float], dict[str, Any]]] = {
    "jump_bf16": ({}, [], {"max_steps": 2, "bf16": True}),
    "plain_bf16": (None, [], {"max_steps": 2, "bf16": True}),
}
ALL_CASES = CASES | BF16_CASES


class FullPrecision(TrainerCallback):
    """Notes the weights of the optimiser, before the first step and after each with what it ended."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self._note(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any) -> None:
        self._note(model)

    def _note(self, model: torch.nn.Module) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        self.found.append({name: safe_get_full_fp32_param(p).clone() for name, p in model.named_parameters()})


def trainer_of(folder: Path, case: str, processes: int, options: Mapping[str, Any]) -> RLVRTrainer:
    settings, rates, more = ALL_CASES[case]
    jumps = None
    if settings is not None:
        remaining = iter(rates)
        config = ExtrapolationConfig.model_validate(PHASES | settings | {"validate": bool(rates)})
        jumps = PeriodicJumps(config, Console(quiet=True), (lambda moment, console: next(remaining)) if rates else None)
    return one_step_trainer(folder, "dapo", processes, model_of("untied"), jumps=jumps, **(ADAM | more | options))


def train(folder: Path, case: str, processes: int, options: Mapping[str, Any]) -> None:
    trainer = trainer_of(folder, case, processes, options)
    full = FullPrecision()
    if trainer.is_deepspeed_enabled:
        trainer.add_callback(full)
    trainer.train()
    trainer.save_model(str(folder / "after"))
    if trainer.accelerator.is_main_process:
        torch.save(full.found, folder / "full_precision.pt")
    if case == "jumps":
        resumed = trainer_of(folder, case, processes, options)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}"))
        resumed.save_model(str(folder / "resumed"))


if __name__ == "__main__":
    engine_options = prepared_engine()
    for each in sys.argv[3:]:
        train(Path(sys.argv[1]) / each, each, int(sys.argv[2]), engine_options)
