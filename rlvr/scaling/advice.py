"""Which backend to choose, in words, with the switches of the recipe."""

from collections.abc import Iterator
from dataclasses import replace

from rlvr.scaling.architecture import Architecture, parameters
from rlvr.scaling.backends import BACKENDS
from rlvr.scaling.estimate import Estimate, estimates
from rlvr.scaling.workload import GIB, Workload

USABLE = 0.9  # of a GPU's memory: the rest is the CUDA context, libraries and fragmentation
# Simplest and fastest first: FSDP2 fetches every layer anew for every sampled token, offloading every one from the CPU.
PREFERENCE = ("single", "ddp", "zero2", "zero3", "fsdp2", "zero3_offload")
MOST_GPUS = 1024
ADAPTERS = 16  # rank of the adapters that are proposed


def verdict(peak: float, gpu_memory: float) -> str:
    """Whether a peak fits a GPU of so many bytes."""
    return "fits" if peak <= USABLE * gpu_memory else "tight" if peak <= gpu_memory else "no"


def updates_in_float32(work: Workload, backend: str) -> bool:
    """Whether the optimiser's own copy of what it trains is float32."""
    if not BACKENDS[backend].keeps_dtype:
        return True
    return work.weights == "float32" or (work.lora_rank is not None and not work.quantized)


def choice(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> Estimate | None:
    """The first backend by preference that fits; one that updates in float32 before one that does not.

    Offloading comes last, and one GPU only where there is no more.
    """

    def order(found: Estimate) -> tuple[bool, bool, int]:
        rounded = not updates_in_float32(work, found.backend)
        return found.backend == "zero3_offload", rounded, PREFERENCE.index(found.backend)

    fitting = [each for each in estimates(sizes, work, gpus) if verdict(each.peak, gpu_memory) == "fits"]
    return min((each for each in fitting if each.backend != "single" or gpus == 1), key=order, default=None)


def remedies(work: Workload) -> Iterator[tuple[list[str], Workload]]:
    """(switches, workload) from the mildest change to the strongest, each on top of those before it."""
    switches: dict[str, str] = {}

    def written() -> list[str]:
        return [f"{key}={value}" for key, value in switches.items()]

    while work.batch % 2 == 0:
        work = replace(work, batch=work.batch // 2, accumulation=work.accumulation * 2)
        switches["trainer.per_device_train_batch_size"] = str(work.batch)
        switches["trainer.gradient_accumulation_steps"] = str(work.accumulation)
        yield written(), work
    if work.lora_rank is None:
        work = replace(work, lora_rank=ADAPTERS)
        switches["model.lora.rank"] = str(ADAPTERS)
        yield written(), work
    if not work.quantized:
        work = replace(work, quantized=True, weights="bfloat16")
        switches["model.quantization"] = "4bit"
        yield written(), work


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
    return " ".join(f"{key}={value}" for key, value in keys.items())


def fewest_gpus(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> tuple[int, Estimate] | None:
    """How many GPUs, doubling from those there are, would fit the workload as it is, and how."""
    while (gpus := gpus * 2) <= MOST_GPUS:
        if (found := choice(sizes, work, gpus, gpu_memory)) is not None:
            return gpus, found
    return None


def advice(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> list[str]:
    """Sentences: what to choose, how to start it, and what else to know; or what would make it fit."""
    best = choice(sizes, work, gpus, gpu_memory)
    if best is None:
        return _without_fit(sizes, work, gpus, gpu_memory)
    plain = replace(work, checkpointing=False)
    unchecked = next(each for each in estimates(sizes, plain, gpus) if each.backend == best.backend)
    if verdict(unchecked.peak, gpu_memory) == "fits":
        work, best = plain, unchecked
    lines = [
        f"Choose {BACKENDS[best.backend].title}: {best.peak / GIB:.0f} of {gpu_memory / GIB:.0f} GiB at the peak, which"
        f" is in the {best.peak_stage} stage"
        + ("" if work.checkpointing else "; gradient checkpointing, which takes a second forward pass, is not needed")
        + ".",
        f"Switches: {switches_of(work)}",
        f"Start it: {launched(best.backend, gpus)}",
    ]
    if best.cpu:
        lines.append(f"The machine needs {best.cpu / GIB:.0f} GiB of its own memory for it.")
    if not updates_in_float32(work, best.backend):
        lines.append(_rounding(sizes, work, gpus, gpu_memory, best.backend))
    return lines


def _rounding(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float, backend: str) -> str:
    """The warning about bfloat16 weights, and what float32 ones would take."""
    text = "Here the trained weights are bfloat16, of which an update of 1e-6 moves only those below about 5e-4"
    if work.quantized:
        return f"{text}; TRL turns the adapters of quantised models to bfloat16."
    exact = next(e for e in estimates(sizes, replace(work, weights="float32"), gpus) if e.backend == backend)
    answer = {"fits": "fits", "tight": "is tight", "no": "does not fit"}[verdict(exact.peak, gpu_memory)]
    return f"{text}. model.dtype=float32 takes {exact.peak / GIB:.0f} GiB, which {answer}; adapters are float32 anyway."


def _without_fit(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> list[str]:
    closest = min(estimates(sizes, work, gpus), key=lambda each: each.peak)
    lines = [
        f"Nothing fits {gpus} x {gpu_memory / GIB:.0f} GiB; closest is {BACKENDS[closest.backend].title} with"
        f" {closest.peak / GIB:.0f} GiB, in the {closest.peak_stage} stage."
    ]
    ungathered = closest.peak - closest.stages["rollout"].gathered + closest.stages["loss"].gathered
    if closest.backend.startswith("zero3") and closest.peak_stage == "rollout" and ungathered < closest.peak:
        lines.append(
            "There ZeRO-3 gathers all weights to sample; trainer.ds3_gather_for_generation=false does without, slowly."
        )
    for switches, changed in remedies(work):
        if (found := choice(sizes, changed, gpus, gpu_memory)) is not None:
            lines.append(
                f"It fits with {BACKENDS[found.backend].title} ({found.peak / GIB:.0f} GiB) and {' '.join(switches)}."
            )
            break
    if (more := fewest_gpus(sizes, work, gpus, gpu_memory)) is not None:
        lines.append(f"Unchanged it fits {more[0]} such GPUs with {BACKENDS[more[1].backend].title}.")
    if len(lines) == 1:
        billions = parameters(sizes) / 1e9
        lines.append(
            f"No switch makes {billions:.0f}B parameters fit; choose GPUs with more memory or a smaller model."
        )
    return lines
