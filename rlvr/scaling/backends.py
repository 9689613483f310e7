"""What each backend keeps on one GPU beside activations, in bytes.

The facts are those of the installed accelerate 1.15, TRL 1.16, DeepSpeed 0.19.8 and PyTorch 2.11, read in their source.

Legend: P all weights, T the trained ones (P, or the adapters'), F = P - T where T are adapters, b bytes of a weight as
loaded, n GPUs. The optimiser is torch's AdamW (`adamw_torch`): two states in the dtype of what it updates and, as it
works on all tensors at once, a temporary of the size of one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlvr.scaling.activations import FULL, HALF
from rlvr.scaling.architecture import (
    Architecture,
    adapter_parameters,
    embedding_parameters,
    linear_parameters,
    linear_shapes,
    parameters,
)
from rlvr.scaling.workload import Workload

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: 4 bits, 8 for the scale of 64, 32 for that of 256 scales
# DeepSpeed's defaults, in elements; accelerate's launch configurations set none of them.
REDUCE_BUCKET, MAX_LIVE, SUB_GROUP = 5e8, 1e9, 1e9


@dataclass(frozen=True)
class Held:
    """Bytes on one GPU; `cpu` those of all machines together."""

    weights: float
    states: float  # of the optimiser
    gradients: float  # from the first backward pass to the end of the optimiser step
    working: float  # temporaries of the optimiser step
    masters: float = 0.0  # float32 copies of the trained weights
    reference: float = 0.0
    buckets: float = 0.0  # of communication, all the time
    reducing: float = 0.0  # of communication, during the backward pass
    gathered: float = 0.0  # whole weights during a pass over a micro-batch
    gathered_reference: float = 0.0
    gathered_rollout: float = 0.0  # whole weights while sampling
    cpu: float = 0.0


@dataclass(frozen=True)
class Counts:
    """Numbers of weights, and the bytes of the frozen ones."""

    trained: float
    frozen_bytes: float
    reference: float  # of a reference model; with adapters there is none, as they are switched off instead


def counts(sizes: Architecture, work: Workload) -> Counts:
    total = float(parameters(sizes))
    if work.lora_rank is None:
        return Counts(total, 0.0, total if work.reference else 0.0)
    frozen = total * work.weight_bytes
    if work.quantized:
        linear = linear_parameters(sizes)
        frozen = (total - linear) * HALF + linear * NF4
    return Counts(float(adapter_parameters(sizes, work.lora_rank)), frozen, 0.0)


def trained_bytes(work: Workload) -> int:
    """Of a trained weight on a backend that leaves its dtype alone: as loaded; peft keeps adapters in float32, TRL
    turns those on quantised weights to bfloat16."""
    if work.lora_rank is None:
        return work.weight_bytes
    return HALF if work.quantized else FULL


def dequantized(sizes: Architecture, work: Workload) -> float:
    """The largest linear map of a layer in bfloat16, which exists while a quantised one is used."""
    return float(HALF * max(n * m for n, m in linear_shapes(sizes))) if work.quantized else 0.0


def single(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """One GPU: weights and gradients t T, states 2 t T, temporary t T (t bytes of a trained weight); F b beside."""
    count, t = counts(sizes, work), trained_bytes(work)
    return Held(
        weights=count.frozen_bytes + t * count.trained,
        states=2 * t * count.trained,
        gradients=t * count.trained,
        working=t * count.trained,
        reference=work.weight_bytes * count.reference,
        gathered=dequantized(sizes, work),
        gathered_rollout=dequantized(sizes, work),
    )


def ddp(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """As one GPU, and the gradients once more in the buckets that are reduced (`gradient_as_bucket_view` is off)."""
    alone = single(sizes, work, gpus)
    return replace(alone, buckets=alone.gradients)


def zero2(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """Weights whole in bfloat16; float32 masters, states, gradients divided: 4, 8, 2 (then 4) bytes per T / n.

    The backward pass fills a bucket of 5e8 elements. The optimiser step copies the gradients (2, then 4 bytes).
    """
    count = counts(sizes, work)
    part = count.trained / gpus
    return Held(
        weights=count.frozen_bytes + HALF * count.trained,
        masters=FULL * part,
        states=2 * FULL * part,
        gradients=HALF * part,
        working=(HALF + FULL) * part,
        reference=HALF * count.reference,
        reducing=HALF * REDUCE_BUCKET,
        gathered=dequantized(sizes, work),
        gathered_rollout=dequantized(sizes, work),
    )


def zero3(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """All divided: weights 2, masters 4, states 8, gradients 2 bytes per T / n, and the bucket of 5e8 elements, kept.

    Gathered weights are kept for reuse up to 1e9 elements; to sample TRL gathers all of them, unless told otherwise.
    The optimiser works on 1e9 elements at a time: float32 gradients and a temporary.
    """
    count, whole = counts(sizes, work), float(parameters(sizes))
    part, gathered = count.trained / gpus, HALF * min(whole, MAX_LIVE)
    return Held(
        weights=count.frozen_bytes / gpus + HALF * part,
        masters=FULL * part,
        states=2 * FULL * part,
        gradients=0.0,
        working=2 * FULL * min(part, SUB_GROUP),
        reference=HALF * count.reference / gpus,
        buckets=HALF * REDUCE_BUCKET + HALF * part,  # the gradients' buffer is made once
        gathered=gathered,
        gathered_reference=HALF * min(count.reference, MAX_LIVE),
        gathered_rollout=HALF * whole if work.gathers_to_sample else gathered,
    )


def zero3_offload(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """ZeRO-3 with weights and optimiser in CPU memory: there 2 P, and 4 + 8 + 4 + 2 bytes per T over all machines."""
    held, count = zero3(sizes, work, gpus), counts(sizes, work)
    return Held(
        weights=0.0,
        states=0.0,
        gradients=0.0,
        working=0.0,
        buckets=HALF * REDUCE_BUCKET,
        gathered=held.gathered,
        gathered_reference=held.gathered_reference,
        gathered_rollout=held.gathered_rollout,
        cpu=count.frozen_bytes + HALF * (count.trained + count.reference) + (4 * FULL + HALF) * count.trained,
    )


def fsdp2(sizes: Architecture, work: Workload, gpus: int) -> Held:
    """All divided, and the trained weights float32 (accelerate turns them under bf16): 4, states 8, gradients 4 bytes
    per T / n, temporary 4.

    Whole in bfloat16 are two layers, one of them fetched ahead, and the embedding and the head; their gradients, of one
    group at a time, exist whole and once more as they are reduced. TRL divides the reference model as one group.
    """
    count, ends = counts(sizes, work), embedding_parameters(sizes) * (1 if sizes.tied else 2)
    part = count.trained / gpus
    layer = linear_parameters(sizes) / sizes.layers
    group = max(layer, ends) if work.lora_rank is None else count.trained / sizes.layers
    gathered = HALF * (2 * layer + ends)
    return Held(
        weights=count.frozen_bytes / gpus + FULL * part,
        states=2 * FULL * part,
        gradients=FULL * part,
        working=FULL * part,
        reference=work.weight_bytes * count.reference / gpus,
        reducing=2 * HALF * group,
        gathered=gathered,
        gathered_reference=HALF * count.reference,
        gathered_rollout=gathered,
    )


@dataclass(frozen=True)
class Backend:
    held: Callable[[Architecture, Workload, int], Held]
    title: str
    launch: str  # the launch configuration below recipes/accelerate/
    min_gpus: int  # with fewer it is of no use
    takes_quantized: bool
    keeps_dtype: bool  # of the weights, or else computes with bfloat16 ones whatever was loaded


BACKENDS: dict[str, Backend] = {
    "single": Backend(single, "one GPU", "single.yaml", 1, True, True),
    "ddp": Backend(ddp, "DDP", "ddp.yaml", 2, True, True),
    "zero2": Backend(zero2, "ZeRO-2", "zero2.yaml", 2, True, False),
    "zero3": Backend(zero3, "ZeRO-3", "zero3.yaml", 2, False, False),
    "zero3_offload": Backend(zero3_offload, "ZeRO-3 offload", "zero3_offload.yaml", 1, False, False),
    "fsdp2": Backend(fsdp2, "FSDP2", "fsdp2.yaml", 2, False, False),
}
