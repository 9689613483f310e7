"""Guidance rules by the name that a recipe uses. `teacher` has a stage of its own: it samples nothing."""

from collections.abc import Callable

from rlvr.config.guidance import GuidanceConfig
from rlvr.guidance.rules.base import Rule
from rlvr.guidance.rules.exemplar import Exemplar
from rlvr.guidance.rules.guide import Guide
from rlvr.guidance.rules.nurl import Nurl
from rlvr.guidance.rules.sage import Sage, SageLight

__all__ = ["RULES", "Rule"]

RULES: dict[str, Callable[[GuidanceConfig], Rule]] = {
    "nurl": lambda config: Nurl(config.plain_rollout),
    "guide": lambda config: Guide(),
    "sage": lambda config: SageLight() if config.schedule == "light" else Sage(),
    "exemplar": lambda config: Exemplar(config.exemplars, config.exemplar_template),
}
