"""The peak of one GPU: what exists at each stage of a step, and the largest of these sums."""

from dataclasses import dataclass, replace

from rlvr.scaling import activations as passes
from rlvr.scaling.architecture import Architecture, embedding_parameters
from rlvr.scaling.backends import BACKENDS, Held
from rlvr.scaling.workload import Workload


@dataclass(frozen=True)
class Parts:
    """Bytes on one GPU at one moment."""

    weights: float = 0.0
    masters: float = 0.0
    states: float = 0.0
    reference: float = 0.0
    buckets: float = 0.0
    gathered: float = 0.0
    gradients: float = 0.0
    activations: float = 0.0
    head: float = 0.0
    kv_cache: float = 0.0
    sampling: float = 0.0
    working: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())


STAGES = ("rollout", "scoring", "loss", "optimiser")


@dataclass(frozen=True)
class Estimate:
    """A backend's stages on one GPU, and the CPU memory that it needs beside, of all machines together."""

    backend: str
    stages: dict[str, Parts]
    cpu: float

    @property
    def peak_stage(self) -> str:
        return max(STAGES, key=lambda stage: self.stages[stage].total)

    @property
    def peak(self) -> float:
        return self.stages[self.peak_stage].total

    def largest(self, part: str) -> float:
        """The part's size at the stage where it is largest."""
        return max(vars(parts)[part] for parts in self.stages.values())


def loss_parts(sizes: Architecture, work: Workload, held: Held, always: Parts) -> Parts:
    """The fullest of three moments of the backward pass:

        in the head       all activations
        in the last layer all activations, that layer's work, the gradient of the head
        in the first one  that layer's work, all gradients, that of the embedding before it is added to them

    Gradients of earlier micro-batches are there at all of them.
    """
    during = replace(always, gathered=held.gathered, buckets=held.buckets + held.reducing)
    earlier = held.gradients if work.accumulation > 1 else 0.0
    kept = passes.activations(sizes, work)
    ends = work.weight_bytes * embedding_parameters(sizes) if work.lora_rank is None else 0
    layer = passes.backward_work(sizes, work) if work.checkpointing else passes.layer_gradients(sizes, work)
    first_layer = passes.backward_work(sizes, work) + passes.layer_input(sizes, work)
    moments = (
        replace(
            during,
            gradients=earlier,
            activations=kept + passes.cast_weights(sizes, work),
            head=passes.head_backward(sizes, work),
        ),
        replace(during, gradients=earlier, activations=kept + layer + ends),
        replace(during, gradients=held.gradients, activations=first_layer + ends),
    )
    return max(moments, key=lambda parts: parts.total)


def as_computed(work: Workload, backend: str) -> Workload:
    """The workload with the weights' dtype that the backend computes with."""
    return work if BACKENDS[backend].keeps_dtype else replace(work, weights="bfloat16")


def estimate(sizes: Architecture, work: Workload, gpus: int, backend: str) -> Estimate:
    """Every stage of a step: sampling, log-probs of frozen weights, forward and backward pass, optimiser step."""
    work = as_computed(work, backend)
    held = BACKENDS[backend].held(sizes, work, gpus)
    always = Parts(
        weights=held.weights,
        masters=held.masters,
        states=held.states,
        reference=held.reference,
        buckets=held.buckets,
    )
    cast = passes.cast_weights(sizes, work)
    stages = {
        "rollout": replace(
            always,
            gathered=held.gathered_rollout,
            kv_cache=passes.kv_cache(sizes, work),
            sampling=passes.generation(sizes, work) + cast,
        ),
        "scoring": replace(
            always,
            gathered=held.gathered + held.gathered_reference,
            activations=passes.forward_work(sizes, work.tokens) + cast,
            head=passes.head_forward(sizes, work),
        ),
        "loss": loss_parts(sizes, work, held, always),
        "optimiser": replace(always, gradients=held.gradients, working=held.working),
    }
    return Estimate(backend, stages, held.cpu)


def offered(work: Workload, gpus: int) -> list[str]:
    """The backends that can do this work with so many GPUs; one of several may always be left alone."""
    return [
        name
        for name, backend in BACKENDS.items()
        if gpus >= backend.min_gpus and (backend.takes_quantized or not work.quantized)
    ]


def estimates(sizes: Architecture, work: Workload, gpus: int) -> list[Estimate]:
    """Of every backend that can do this work."""
    return [estimate(sizes, work, gpus, name) for name in offered(work, gpus)]
