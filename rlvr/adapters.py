"""LoRA adapters of the policy: new ones to train, and saved ones on the base that they name."""

import os
import warnings
from pathlib import Path
from textwrap import shorten

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlvr.config.lora import ALL_LINEAR, LoRAConfig
from rlvr.config.problems import nearest
from rlvr.config.schema import ModelConfig
from rlvr.errors import CheckpointError, RecipeError
from rlvr.model_paths import BUILTIN

LINEAR = (nn.Linear, Conv1D)
REASON_CHARACTERS = 300  # PyTorch names every tensor
# PEFT looks for the base's config.json whenever it saves an adapter, and says so where the base is a built-in one.
warnings.filterwarnings("ignore", message="Could not find a config file in builtin://")


def peft_settings(config: ModelConfig, lora: LoRAConfig, model: PreTrainedModel) -> LoraConfig:
    """What PEFT is to add to the model, which stays as it is. Raises RecipeError for modules that do not fit it."""
    if lora.target_modules != ALL_LINEAR:
        _found("target_modules", lora.target_modules, model, LINEAR, "linear layer")
    # In full: PEFT would take `norm` for `q_norm` as well.
    saved = _found("modules_to_save", lora.modules_to_save, model, (nn.Module,), "module")
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=saved or None,
        task_type="CAUSAL_LM",
        revision=config.revision,
    )


def _found(
    key: str, names: str | list[str], model: PreTrainedModel, types: tuple[type[nn.Module], ...], kind: str
) -> list[str]:
    """The full names of the modules of these types that have these names or end in them."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if name and isinstance(module, types)}
    ends = sorted({name.rpartition(".")[2] for name, module in modules.items() if module is not head})
    found: list[str] = []
    for wanted in names:
        matching = [name for name in modules if f".{name}".endswith(f".{wanted}")]
        where = f"model.lora.{key}: {wanted!r}"
        if not matching:
            advice = nearest(wanted, ends, f"it has {shorten(', '.join(ends), 200)}")
            raise RecipeError(f"{where} is no {kind} of the model; {advice}")
        if any(modules[name] is head for name in matching):
            raise RecipeError(f"{where} is the head, which the loss reads as a plain linear layer; leave it out.")
        found += matching
    return found


def name_base(model: PeftModel, config: ModelConfig) -> None:
    """Lets saved adapters name the base as the recipe does, where that means the same on other machines."""
    local = Path(config.path).expanduser()
    base = os.path.abspath(local) if config.path not in BUILTIN and local.exists() else config.path
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = base


def keep_small_steps(model: PeftModel) -> None:
    """Puts what is trained into float32.

    TRL makes adapters on quantised weights bfloat16, whose spacing of 2^-8 swallows the optimiser's steps.
    """
    for value in model.parameters():
        if value.requires_grad:
            value.data = value.data.float()


def with_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    """The model with a saved adapter on it. Raises CheckpointError for one that is not of this model."""
    try:
        return PeftModel.from_pretrained(model, str(Path(folder).expanduser()))
    except (OSError, ValueError, RuntimeError) as error:
        reason = shorten(str(error), REASON_CHARACTERS)
        raise CheckpointError(
            f"The adapter {folder} does not go onto {model.name_or_path}; give the base that it was trained on:"
            f" {reason}"
        ) from error
