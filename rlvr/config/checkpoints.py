"""The `checkpoints` section: which of a run's checkpoints stay on the disk."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rlvr.config.problems import Problem
from rlvr.config.section import Section


class CheckpointsConfig(Section):
    """Without a number for either, every checkpoint stays. The newest always does, as the run goes on from it."""

    keep_last: int | None = Field(default=None, ge=1)  # the newest so many
    keep_best: int | None = Field(default=None, ge=1)  # so many with the best validation score, whatever their age
    best_by: str = "pass@1"  # which estimate of the evaluation, averaged over evaluation.validation


def check_saves(config: CheckpointsConfig, evaluate_every: int | None, trainer: Mapping[str, Any]) -> None:
    """Raises Problem, with a key below `checkpoints`, where checkpoints are compared of which some have no score."""
    if config.keep_best is None or evaluate_every is None:
        return
    steps = trainer["save_steps"]
    if trainer["save_strategy"] != "steps" or steps != int(steps) or steps % evaluate_every:
        raise Problem(
            "keep_best",
            f"compares checkpoints by evaluations, which are every {evaluate_every} steps (evaluation.every), and with"
            f" trainer.save_strategy={trainer['save_strategy']!r}, trainer.save_steps={steps:g} some would have none;"
            " save by steps, whose number is a multiple of evaluation.every",
        )
