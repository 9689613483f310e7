"""The `sampler` section: which prompts a step trains on."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rlvr.config.problems import Problem
from rlvr.config.section import Section


class DynamicConfig(Section):
    """Prompts whose completions are all right or all wrong make room for others, so many times in a step at most."""

    max_rounds: int = Field(default=4, ge=1)


class SamplerConfig(Section):
    """Without further keys a step has the next prompts of the shuffled data, whatever becomes of them."""

    dynamic: DynamicConfig | None = None


def check_sampler(config: SamplerConfig, trainer: Mapping[str, Any]) -> None:
    """Raises Problem, with a key below `sampler`, where no prompt could ever be kept."""
    if config.dynamic is not None and trainer["num_generations"] < 2:
        raise Problem(
            "dynamic", "one completion is never both right and wrong; set trainer.num_generations to 2 or more"
        )
