"""The `model.lora` and `model.quantization` keys: adapters that are trained in place of the weights."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from rlvr.config.problems import Problem, misfit
from rlvr.config.section import Section
from rlvr.config.trainer_defaults import TRAINER_DEFAULTS

ALL_LINEAR = "all-linear"

Quantization = Literal["4bit", "8bit"]


def _targets(value: Any) -> str | list[str]:
    names = value if isinstance(value, list) else []
    if value == ALL_LINEAR or (names and all(isinstance(name, str) and name for name in names)):
        return value
    raise Problem("", misfit(value, f"{ALL_LINEAR!r} or a list of names, such as [q_proj, v_proj]"))


class LoRAConfig(Section):
    """A change W + alpha / rank B A of linear layers, of which A and B are trained (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what goes into A
    # Linear layers by their name or its end; all-linear: every one but the head.
    target_modules: Annotated[str | list[str], PlainValidator(_targets)] = ALL_LINEAR
    modules_to_save: list[str] = Field(default=[])  # modules that are trained whole, by their name or its end


def check_lora(lora: LoRAConfig | None, quantization: Quantization | None, trainer: Mapping[str, Any]) -> None:
    """Raises Problem, with a key below `model`, for what contradicts itself or the trainer section of the recipe."""
    if lora is None and quantization is not None:
        raise Problem(
            "quantization", f"{quantization!r} weights cannot be trained; add `lora: {{}}`, or remove quantization"
        )
    disables = trainer.get("disable_dropout", TRAINER_DEFAULTS["disable_dropout"])
    if lora is not None and lora.dropout > 0 and disables:
        raise Problem(
            "lora.dropout",
            f"{lora.dropout} has no effect while trainer.disable_dropout is true; set that to false, or remove it",
        )
