"""The trained weights that this process holds, in the precision in which the optimiser keeps them.

What is done to every weight by itself can be done to each process's share of a tensor, so nothing is gathered.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter

from rlvr.errors import ExtrapolationError

WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")  # what activation checkpointing and compilation add to names


class LocalWeights(Protocol):
    """This process's shares of trained tensors, by their names in the model; a tied tensor has the first of its names.

    A share is a part of the tensor in no particular shape, and the same part each time.
    """

    is_sharded: bool  # whether processes hold different parts of the model

    def names(self) -> Sequence[str]:
        """The tensors of which this process has a share."""
        ...

    def read(self, name: str) -> Tensor:
        """The share, which may be the memory of training itself: not to be written to, nor kept."""
        ...

    def write(self, name: str, share: Tensor) -> None:
        """Replaces the share. Training may go on with the old weights until `publish`."""
        ...

    def publish(self) -> None:
        """Brings what was written everywhere where training reads it. Called by all processes together."""
        ...


def local_weights(model: Module, optimizer: Any, accelerator: Accelerator) -> LocalWeights:
    """The shares under whatever engine prepared `model` and `optimizer`, as accelerate returned them.

    One process, DDP, FSDP2 and ZeRO-1 to -3. Raises ExtrapolationError for other engines.
    """
    parameters = trained_parameters(accelerator.unwrap_model(model))
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ExtrapolationError(
            "Weights cannot be replaced under FSDP1, which joins tensors into one; set fsdp_version to 2 in the launch"
            " configuration."
        )
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return TensorShares(parameters)
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    engine = optimizer.optimizer
    if isinstance(engine, DeepSpeedZeroOptimizer_Stage3):
        return PartitionedParameters(parameters, engine)
    if isinstance(engine, DeepSpeedZeroOptimizer):
        return PartitionedMasters(parameters, engine)
    raise ExtrapolationError(
        "Weights cannot be replaced under DeepSpeed without ZeRO; set zero_stage to 1, 2 or 3 in the launch"
        " configuration."
    )


def trained_parameters(model: Module) -> dict[str, Parameter]:
    """By name, the parameters of an unwrapped model that are trained, each tied tensor once."""
    return {plain_name(name): each for name, each in model.named_parameters() if each.requires_grad}


def all_names(model: Module) -> dict[str, list[str]]:
    """All names of each trained parameter of an unwrapped model, by the first of them."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, each in model.named_parameters(remove_duplicate=False):
        if each.requires_grad:
            names.setdefault(first.setdefault(id(each), plain_name(name)), []).append(plain_name(name))
    return names


def plain_name(name: str) -> str:
    """The name of a parameter in the model that was wrapped."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class TensorShares:
    """Whole tensors, of one process and of DDP, or this process's shards, of FSDP2."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self._parameters = parameters
        self.is_sharded = any(isinstance(each, DTensor) for each in parameters.values())

    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def read(self, name: str) -> Tensor:
        held = self._parameters[name].detach()
        return held.to_local() if isinstance(held, DTensor) else held

    def write(self, name: str, share: Tensor) -> None:
        self.read(name).copy_(share)

    def publish(self) -> None:
        """Nothing: these are the tensors of the model."""


class PartitionedMasters:
    """ZeRO-1 and -2: this process's part of the float32 weights, of which the model has whole copies."""

    is_sharded = True

    def __init__(self, parameters: Mapping[str, Parameter], engine: Any) -> None:
        self._engine = engine
        found: dict[str, Any] = {name: each for name, each in parameters.items()}
        self._fragments = {n: p._hp_mapping for n, p in found.items() if p._hp_mapping is not None}

    def names(self) -> Sequence[str]:
        return list(self._fragments)

    def read(self, name: str) -> Tensor:
        fragment: Tensor = self._fragments[name].get_hp_fragment()
        return fragment.detach()

    def write(self, name: str, share: Tensor) -> None:
        self.read(name).copy_(share)

    def publish(self) -> None:
        self._engine.update_lp_params()


class PartitionedParameters:
    """ZeRO-3: this process's part of the float32 weights and of the model's own, perhaps 16-bit, copy of them."""

    is_sharded = True

    def __init__(self, parameters: Mapping[str, Parameter], engine: Any) -> None:
        self._parameters: Mapping[str, Any] = parameters
        self._engine = engine

    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def read(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param

        return safe_get_local_fp32_param(self._parameters[name]).detach()

    def write(self, name: str, share: Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        parameter = self._parameters[name]
        safe_set_local_fp32_param(parameter, share)
        with torch.no_grad():
            parameter.ds_tensor.copy_(share)

    def publish(self) -> None:
        """Small tensors are kept whole between steps: they are given up, and gathered anew from their parts."""
        self._engine.checkpoint_event_prologue()
        self._engine.checkpoint_event_epilogue()
