"""The `watch` section: signs of life, stalls, and numbers that are not finite."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlvr.config.problems import Problem
from rlvr.config.section import Section

DEFAULT_MAX_SKIPPED = 10
# Optimisers that leave a tensor without a gradient, and all that they keep of it, as it is.
SKIPPING_OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "sgd")


class WatchConfig(Section):
    """What is looked at in each process of a run, and what happens then."""

    heartbeat_s: float = Field(default=10.0, gt=0)  # between two writings of ranks/rank-N/heartbeat.json
    stall_minutes: float | None = Field(default=30.0, gt=0)  # without progress, after which stacks are written
    on_stall: Literal["report", "abort"] = "report"
    on_nonfinite: Literal["stop", "skip"] = "stop"  # a step whose loss or gradient is not finite
    max_skipped: int = Field(default=DEFAULT_MAX_SKIPPED, ge=1)  # in a row, after which the run stops all the same

    @model_validator(mode="after")
    def _check_stall(self) -> Self:
        if self.stall_minutes is None and self.on_stall == "abort":
            raise Problem("on_stall", "'abort' has no effect without stall_minutes; set stall_minutes, or remove it")
        if self.stall_minutes is not None and self.stall_minutes * 60 < self.heartbeat_s:
            raise Problem(
                "stall_minutes",
                f"{self.stall_minutes:g} minutes are shorter than heartbeat_s={self.heartbeat_s:g} seconds, by which"
                " progress is looked at; make heartbeat_s smaller",
            )
        return self

    @model_validator(mode="after")
    def _check_max_skipped(self) -> Self:
        if self.on_nonfinite == "stop" and self.max_skipped != DEFAULT_MAX_SKIPPED:
            raise Problem(
                "max_skipped", "has no effect, as on_nonfinite 'stop' skips no step; set it to 'skip', or remove it"
            )
        return self


def check_skipping(config: WatchConfig, trainer: Mapping[str, Any]) -> None:
    """Raises Problem, with a key below `watch`, if steps are to be skipped that the trainer cannot leave out."""
    if config.on_nonfinite == "stop":
        return
    if trainer["fp16"]:
        raise Problem(
            "on_nonfinite",
            "'skip' is not for trainer.fp16, whose loss scaler makes gradients overflow on purpose and skips such steps"
            " itself; use trainer.bf16, or set it to 'stop'",
        )
    if trainer["optim"] not in SKIPPING_OPTIMISERS:
        raise Problem(
            "on_nonfinite",
            f"'skip' is not known to leave the state of trainer.optim {trainer['optim']!r} alone; use one of"
            f" {', '.join(SKIPPING_OPTIMISERS)}, or set it to 'stop'",
        )
