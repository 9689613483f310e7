"""What accelerate's engines would make of a recipe that it does not say."""

import os

from accelerate import Accelerator
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from rlvr.config.extrapolation import ADAM
from rlvr.config.lora import Quantization
from rlvr.errors import RecipeError


def check_engine(arguments: GRPOConfig, quantization: Quantization | None) -> None:
    """Raises RecipeError for weights that the engine cannot shard, and an optimiser that it would replace.

    The engine is that of the launch configuration, of which `arguments` has learnt.
    """
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if quantization is not None and (is_deepspeed_zero3_enabled() or is_fsdp):
        raise RecipeError(
            f"model.quantization: {quantization!r} weights cannot be sharded; launch by ddp.yaml or zero2.yaml of"
            " recipes/accelerate, or remove it."
        )
    plugin = arguments.deepspeed_plugin
    if plugin is None or arguments.optim in ADAM:
        return
    zero = plugin.deepspeed_config.get("zero_optimization", {})
    if zero.get("offload_optimizer", {}).get("device", "none") != "none" and plugin.deepspeed_config.get(
        "zero_force_ds_cpu_optimizer", True
    ):
        raise RecipeError(
            f"trainer.optim: {arguments.optim!r} would be replaced by DeepSpeed's Adam for CPUs, as the launch"
            f" configuration offloads the optimiser; set it to {ADAM[0]!r}, or launch without offload_optimizer_device."
        )


def keep_wrap_policy(accelerator: Accelerator) -> None:
    """Lets FSDP2 shard a model with adapters layer by layer, as the launch configuration says.

    For adapters transformers puts PEFT's policy of FSDP1 in its place when training starts. accelerate does not know
    that one for FSDP2, and would make the whole model one unit, all of which is gathered at once.
    """
    plugin = accelerator.state.fsdp_plugin
    own, set_policy = plugin.auto_wrap_policy, plugin.set_auto_wrap_policy

    def set_own(model: nn.Module) -> None:
        plugin.auto_wrap_policy = own
        set_policy(model)

    plugin.set_auto_wrap_policy = set_own
