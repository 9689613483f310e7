"""Which backend to choose, in words, with the switches of the recipe."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlvr.scaling.architecture import Architecture, parameters
from rlvr.scaling.backends import BACKENDS
from rlvr.scaling.estimate import Estimate, estimate, estimates, offered
from rlvr.scaling.workload import GIB, Workload

USABLE = 0.9  # of a GPU's memory: the rest is the CUDA context, libraries and fragmentation
MOST_GPUS = 1024
ADAPTERS = 16  # rank of the adapters that are proposed

# What may be chosen, with a change to the workload that costs no accuracy, the simplest and fastest first. FSDP2, and
# ZeRO-3 that does not gather, fetch every layer anew for every sampled token; offloading fetches it from the CPU.
FLOAT32, NO_GATHERING = {"weights": "float32"}, {"gathers_to_sample": False}
Candidates = tuple[tuple[str, Mapping[str, Any]], ...]
ON_GPUS: Candidates = (
    ("single", {}),
    ("single", FLOAT32),
    ("ddp", {}),
    ("ddp", FLOAT32),
    ("zero2", {}),
    ("zero3", {}),
    ("fsdp2", {}),
    ("zero3", NO_GATHERING),
)
OFFLOADED: Candidates = (("zero3_offload", {}), ("zero3_offload", NO_GATHERING))


@dataclass(frozen=True)
class Choice:
    """A backend, the workload with which it was chosen, and what that needs."""

    work: Workload
    found: Estimate

    @property
    def title(self) -> str:
        return BACKENDS[self.found.backend].title


def verdict(peak: float, gpu_memory: float) -> str:
    """Whether a peak fits a GPU of so many bytes."""
    return "fits" if peak <= USABLE * gpu_memory else "tight" if peak <= gpu_memory else "no"


def updates_in_float32(work: Workload, backend: str) -> bool:
    """Whether the optimiser's own copy of what it trains is float32."""
    if not BACKENDS[backend].keeps_dtype:
        return True
    return work.weights == "float32" or (work.lora_rank is not None and not work.quantized)


def choose(
    sizes: Architecture, work: Workload, gpus: int, gpu_memory: float, candidates: Candidates = ON_GPUS
) -> Choice | None:
    """The first candidate that fits; one that updates in float32 before one that does not.

    One GPU is only chosen where there are no more.
    """
    fitting = []
    for backend, changes in candidates:
        if backend not in offered(work, gpus) or (backend == "single" and gpus > 1):
            continue
        changed = work if work.lora_rank is not None and changes is FLOAT32 else replace(work, **changes)
        choice = Choice(changed, estimate(sizes, changed, gpus, backend))
        if verdict(choice.found.peak, gpu_memory) == "fits":
            fitting.append(choice)
    return min(fitting, key=lambda each: not updates_in_float32(each.work, each.found.backend), default=None)


def halvings(work: Workload) -> Iterator[Workload]:
    """The workload, and with ever smaller micro-batches of which a step takes more."""
    yield work
    while work.batch % 2 == 0:
        work = replace(work, batch=work.batch // 2, accumulation=work.accumulation * 2)
        yield work


def remedies(work: Workload) -> Iterator[Workload]:
    """Workloads that need less, from the mildest change to the strongest: smaller micro-batches, adapters in place of
    all weights, and these on quantised weights."""
    yield from list(halvings(work))[1:]
    if work.lora_rank is None:
        work = replace(work, lora_rank=ADAPTERS)
        yield from halvings(work)
    if not work.quantized:
        yield from halvings(replace(work, quantized=True, weights="bfloat16"))


def first_remedy(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> Choice | None:
    """The mildest change that fits without offloading."""
    tried = (choose(sizes, changed, gpus, gpu_memory) for changed in remedies(work))
    return next((choice for choice in tried if choice is not None), None)


def enough_gpus(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> tuple[int, Choice] | None:
    """How many GPUs, doubling from those there are, fit the workload as it is without offloading, and how."""
    while (gpus := gpus * 2) <= MOST_GPUS:
        if (choice := choose(sizes, work, gpus, gpu_memory)) is not None:
            return gpus, choice
    return None


def launched(backend: str, gpus: int) -> str:
    """How the backend is started."""
    if backend == "single":
        return "rlvr train RECIPE"
    config = f"recipes/accelerate/{BACKENDS[backend].launch}"
    return f"accelerate launch --config_file {config} --num_processes {gpus} scripts/train.py RECIPE"


def switches_of(work: Workload) -> str:
    """The keys of a recipe that make it the workload."""
    keys = {
        "trainer.bf16": "true",
        "trainer.gradient_checkpointing": "true" if work.checkpointing else "false",
        "trainer.per_device_train_batch_size": str(work.batch),
        "trainer.gradient_accumulation_steps": str(work.accumulation),
    }
    if work.weights == "float32":
        keys["model.dtype"] = "float32"
    if work.lora_rank is not None:
        keys["model.lora.rank"] = str(work.lora_rank)
    if work.quantized:
        keys["model.quantization"] = "4bit"
    if not work.gathers_to_sample:
        keys["trainer.ds3_gather_for_generation"] = "false"
    return " ".join(f"{key}={value}" for key, value in keys.items())


def advice(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> list[str]:
    """Sentences: what to choose, how to start it, and what else to know; or what would make it fit."""
    choice = choose(sizes, work, gpus, gpu_memory)
    if choice is None:
        return _offloading(sizes, work, gpus, gpu_memory)
    aside = ""
    plain = choose(sizes, replace(work, checkpointing=False), gpus, gpu_memory)
    if plain is not None and plain.found.backend == choice.found.backend and plain.work.weights == choice.work.weights:
        choice, aside = plain, "; gradient checkpointing, a second forward pass, is not needed"
    lines = _chosen(choice, gpus, gpu_memory, aside)
    if not updates_in_float32(choice.work, choice.found.backend):
        lines.append(
            "What is trained is bfloat16 here, of which an update of 1e-6 moves only weights below about 5e-4;"
            " more GPUs or, without quantisation, adapters would be updated in float32."
        )
    return lines


def _chosen(choice: Choice, gpus: int, gpu_memory: float, aside: str = "") -> list[str]:
    found = choice.found
    return [
        f"Choose {choice.title}: {found.peak / GIB:.0f} of {gpu_memory / GIB:.0f} GiB at the peak, which is in the"
        f" {found.peak_stage} stage{aside}.",
        f"Switches: {switches_of(choice.work)}",
        f"Start it: {launched(found.backend, gpus)}",
    ]


def _offloading(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> list[str]:
    """What to do when nothing fits that stays on the GPUs."""
    choice = choose(sizes, work, gpus, gpu_memory, OFFLOADED)
    if choice is None:
        closest = min(estimates(sizes, work, gpus), key=lambda each: each.peak)
        lines = [
            f"Nothing fits {gpus} x {gpu_memory / GIB:.0f} GiB; closest is {BACKENDS[closest.backend].title} with"
            f" {closest.peak / GIB:.0f} GiB, in the {closest.peak_stage} stage."
        ]
    else:
        lines = _chosen(choice, gpus, gpu_memory)
        lines.append(
            f"It takes {choice.found.cpu / GIB:.0f} GiB of CPU memory, of all machines together, and steps are slow."
        )
    if (remedy := first_remedy(sizes, work, gpus, gpu_memory)) is not None:
        what = f"{remedy.title} ({remedy.found.peak / GIB:.0f} GiB)"
        lines.append(f"What fits on the GPUs is {what} with {switches_of(remedy.work)}")
    if (more := enough_gpus(sizes, work, gpus, gpu_memory)) is not None:
        lines.append(f"Unchanged it fits {more[0]} such GPUs with {more[1].title}.")
    if len(lines) == 1:
        billions = parameters(sizes) / 1e9
        lines.append(f"No switch makes {billions:.0f}B parameters fit; take GPUs with more memory or a smaller model.")
    return lines
