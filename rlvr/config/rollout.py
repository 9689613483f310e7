"""The `rollout` section, and what the engine settings of the `trainer` section must not be."""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlvr.config.problems import Problem
from rlvr.config.section import Section

PAGED = "use_transformers_continuous_batching"
# Generation settings that TRL would take a second time, behind the back of the loss, and the field that decides them.
FIELDS = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
FIELDS |= dict.fromkeys(["max_new_tokens", "max_tokens"], "max_completion_length")


class RolloutConfig(Section):
    """Whether the engine that samples is checked to have the weights in training."""

    check_engine: Literal["start", "every_sync", "off"] = "start"  # every_sync: before each generation phase
    # Bound on the mean of |exp(trainer's log-prob - engine's) - 1|; null: 0.001 in float32, 0.05 in fewer bits or vLLM.
    engine_tolerance: float | None = Field(default=None, gt=0)

    @field_validator("check_engine", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _check_tolerance(self) -> Self:
        if self.check_engine == "off" and self.engine_tolerance is not None:
            raise Problem(
                "engine_tolerance", "has no effect, as check_engine is 'off'; set that to 'start', or remove this"
            )
        return self


def check_engine_settings(trainer: Mapping[str, Any]) -> None:
    """Raises Problem, with a key below `trainer`, for settings with which an engine would not sample as they say."""
    is_paged = trainer.get(PAGED, False)
    if is_paged and trainer.get("use_vllm", False):
        raise Problem(PAGED, "contradicts use_vllm; only one engine samples, so set one of the two to false")
    for name in _mapping(trainer.get("generation_kwargs")):
        if name in FIELDS:
            raise Problem(
                f"generation_kwargs.{name}",
                f"would have the engine sample otherwise than the loss assumes; set trainer.{FIELDS[name]} instead",
            )
    if is_paged and trainer["repetition_penalty"] != 1.0:
        raise Problem(
            "repetition_penalty",
            f"{trainer['repetition_penalty']} cannot be applied by continuous batching; set it to 1.0, or {PAGED} to"
            " false",
        )
    if is_paged and "seed" in _mapping(trainer.get("transformers_continuous_batching_config")):
        raise Problem(
            "transformers_continuous_batching_config.seed",
            "would draw the same random numbers in every step; remove it, as trainer.seed decides them",
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    """GRPOConfig takes some mappings as JSON text too; what else the text may be is for GRPOConfig to refuse."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
