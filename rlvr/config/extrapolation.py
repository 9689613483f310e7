"""The `extrapolation` section: jumps ahead along the line of the last steps, within one run."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from rlvr.config.problems import Problem, shown
from rlvr.config.section import Section

Moments = Literal["keep", "reset", "rescale"]

PAPER = "arXiv 2601.04537 (RL-Extra, later called periodic re-grounding)"
NOTE = (
    "train_steps real steps, then a jump: W = W0 + beta (W1 - W0), beta = (train_steps + skip_steps) / train_steps.\n"
    "The authors start each phase as a new run from 16-bit weights; here one run goes on, in the optimiser's precision."
)
ADAM = ("adamw_torch", "adamw_torch_fused")

with warnings.catch_warnings():
    # A recipe says `validate`, which is also the name of a method that pydantic no longer uses.
    warnings.filterwarnings("ignore", message='Field name "validate"')

    class ExtrapolationConfig(Section):
        """Phases of `train_steps` optimiser steps, each ended by a jump of `skip_steps` predicted ones."""

        mode: Literal["periodic"] = "periodic"
        train_steps: int = Field(ge=1)
        skip_steps: int = Field(ge=0)  # 0: no jump, only what `moments` says
        validate: bool = True  # type: ignore[assignment]  # undo jumps that lower pass@1 on evaluation.validation
        moments: Moments = "keep"  # of Adam at a jump
        copies: list[str] = Field(default=[])  # patterns of further names that jumps leave alone, as "*.mlp.*"
        default_copies: bool = True  # they leave norms, embeddings and the head alone

        @property
        def beta(self) -> float:
            """How far a jump goes, in lengths of the way of its phase."""
            return (self.train_steps + self.skip_steps) / self.train_steps


def explained_extrapolation() -> str:
    """The section's paper, how this project departs from it, and the keys with their defaults."""
    lines = [f"extrapolation: {PAPER}", NOTE, ""]
    for name, field in ExtrapolationConfig.model_fields.items():
        lines.append(f"  {name:16} {'required' if field.is_required() else shown(field.default)}")
    return "\n".join(lines)


def check_trainer(config: ExtrapolationConfig, trainer: Mapping[str, Any], world_size: int) -> None:
    """Raises Problem, with a key below `extrapolation`, for what contradicts the trainer section with its defaults."""
    if 0 < trainer["max_steps"] < config.train_steps:
        raise Problem(
            "train_steps",
            f"{config.train_steps} steps end no phase of a run with trainer.max_steps={trainer['max_steps']}, which"
            " counts real steps; make it smaller",
        )
    if config.moments != "keep" and trainer["optim"] not in ADAM:
        raise Problem(
            "moments",
            f"{config.moments!r} is for Adam, and trainer.optim is {trainer['optim']!r}; set moments to 'keep', or"
            f" trainer.optim to one of {', '.join(ADAM)}",
        )
    updates = _updates_per_generation(trainer, world_size)
    if config.train_steps % updates:
        raise Problem(
            "train_steps",
            f"{config.train_steps} is no multiple of the {updates:g} optimiser steps that trainer.steps_per_generation"
            " and trainer.num_iterations take with the completions of one generation, which a jump makes stale; make it"
            " one",
        )


def _updates_per_generation(trainer: Mapping[str, Any], world_size: int) -> float:
    """Optimiser steps between two generations; no whole number where the trainer will refuse the sizes."""
    accumulation = trainer["gradient_accumulation_steps"] or 1
    micro_batches = trainer.get("steps_per_generation") or accumulation
    if (size := trainer.get("generation_batch_size")) is not None:
        micro_batches = size / (trainer["per_device_train_batch_size"] * world_size)
    updates: float = micro_batches * (trainer["num_iterations"] or 1) / accumulation
    return updates
