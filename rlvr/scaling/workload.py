"""What a run asks of each GPU."""

from dataclasses import dataclass
from typing import Literal

from rlvr.errors import UserError

WeightDtype = Literal["bfloat16", "float32"]
GIB = 2**30


@dataclass(frozen=True)
class Workload:
    """The settings of a recipe that decide memory; counts are per GPU.

    Computation is in bfloat16 (`trainer.bf16`): autocast, in which the weights keep the dtype they were loaded in.
    """

    batch: int = 8  # completions of a micro-batch: trainer.per_device_train_batch_size
    group: int = 8  # completions of a prompt: trainer.num_generations
    accumulation: int = 1  # micro-batches of an optimiser step: trainer.gradient_accumulation_steps
    steps_per_generation: int | None = None  # micro-batches sampled at once; None: one optimiser step's
    prompt_length: int = 1024  # tokens, of the longest
    completion_length: int = 512  # tokens, of the longest
    checkpointing: bool = True  # trainer.gradient_checkpointing
    weights: WeightDtype = "bfloat16"  # as loaded: model.dtype, or the checkpoint's under 'auto'
    lora_rank: int | None = None  # None: all weights are trained
    quantized: bool = False  # the frozen weights of the layers in 4 bits: QLoRA
    reference: bool = False  # a KL penalty, so a reference model
    gathers_to_sample: bool = True  # ZeRO-3 gathers all weights: trainer.ds3_gather_for_generation

    @property
    def length(self) -> int:
        return self.prompt_length + self.completion_length

    @property
    def tokens(self) -> int:
        """Of a padded micro-batch."""
        return self.batch * self.length

    @property
    def rollout_rows(self) -> int:
        """Completions that one GPU samples at once: all of them until weights or rollouts are next renewed."""
        return self.batch * (self.steps_per_generation or self.accumulation)

    @property
    def weight_bytes(self) -> int:
        return 4 if self.weights == "float32" else 2


def checked(work: Workload, gpus: int) -> Workload:
    """The workload itself. Raises UserError for settings that no run could have."""
    positive = {
        "--gpus": gpus,
        "--batch": work.batch,
        "--accumulation": work.accumulation,
        "--prompt-length": work.prompt_length,
        "--completion-length": work.completion_length,
    }
    for option, value in positive.items():
        if value < 1:
            raise UserError(f"{option} is {value}; give a whole number of 1 or more.")
    if work.group < 2:
        raise UserError(f"--group is {work.group}; a group needs 2 completions or more to have a baseline.")
    if work.lora_rank is not None and work.lora_rank < 1:
        raise UserError(f"--lora is {work.lora_rank}; give a rank of 1 or more, or leave it out.")
    if work.quantized and work.lora_rank is None:
        raise UserError("--quantized keeps the weights in 4 bits, which cannot be trained; add --lora RANK.")
    if work.quantized and work.weights == "float32":
        raise UserError("--quantized replaces the weights of the layers; leave out --dtype float32.")
    total = work.batch * work.accumulation * gpus
    if total % work.group:
        raise UserError(
            f"--batch {work.batch} x --accumulation {work.accumulation} x --gpus {gpus} = {total} completions are no"
            f" multiple of --group {work.group}; make them one."
        )
    return work
