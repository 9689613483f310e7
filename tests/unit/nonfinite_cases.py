"""Models whose loss or gradient is not finite when a test says so."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

NAN = float("nan")


def break_loss(model: PreTrainedModel, is_due: Callable[[], bool], row: int | None = None) -> None:
    """Makes what the first layer puts out NaN, of one row or of all, where the loss is calculated."""

    def hook(module: torch.nn.Module, inputs: object, hidden: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and is_due()):
            return hidden
        factor = torch.ones_like(hidden)
        factor[slice(None) if row is None else row] = NAN
        return hidden * factor

    model.model.layers[0].register_forward_hook(hook)


def break_gradient(model: PreTrainedModel, is_due: Callable[[], bool]) -> None:
    """Makes the gradient NaN of what the first layer puts out, and leaves the loss alone."""

    def hook(module: torch.nn.Module, inputs: object, hidden: Tensor) -> None:
        if torch.is_grad_enabled() and is_due():
            hidden.register_hook(lambda gradient: gradient * NAN)

    model.model.layers[0].register_forward_hook(hook)


FAULTS: dict[str, Callable[[PreTrainedModel, Callable[[], bool]], None]] = {
    "loss": break_loss,
    "gradient": break_gradient,
}
