"""The estimate as a table, and the words below it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from rlvr.scaling import activations as passes
from rlvr.scaling.advice import USABLE, advice, updates_in_float32, verdict
from rlvr.scaling.architecture import Architecture, parameters
from rlvr.scaling.backends import BACKENDS
from rlvr.scaling.estimate import STAGES, as_computed, estimates
from rlvr.scaling.workload import GIB, Workload

TITLES = {
    "weights": "weights",
    "masters": "float32 masters",
    "states": "optimiser states",
    "gradients": "gradients",
    "buckets": "communication buckets",
    "gathered": "gathered weights",
    "reference": "reference model",
    "kv_cache": "KV cache",
    "sampling": "sampling, temporary",
    "working": "optimiser, temporary",
}
STAGE_TITLES = {"rollout": "rollout", "scoring": "old log-probs", "loss": "loss", "optimiser": "optimiser step"}


def table_of(sizes: Architecture, work: Workload, gpus: int, gpu_memory: float) -> Table:
    """GiB on one GPU: every part at its largest, the sum of each stage, and the peak, a column for each backend."""
    plain_work = replace(work, checkpointing=False)
    checked, plain = estimates(sizes, work, gpus), estimates(sizes, plain_work, gpus)
    table = Table("GiB on one GPU", title="estimate", title_justify="left")
    for each in checked:
        table.add_column(BACKENDS[each.backend].title, justify="right")

    def row(title: str, values: Sequence[float]) -> None:
        if any(values):
            table.add_row(title, *(f"{value / GIB:.1f}" if value else "" for value in values))

    def passing(title: str, formula: Callable[[Architecture, Workload], float], asked: Workload) -> None:
        row(title, [formula(sizes, as_computed(asked, each.backend)) for each in checked])

    for part, title in TITLES.items():
        row(title, [each.largest(part) for each in checked])
    passing("LM head, in tiles", passes.head_backward, work)
    passing("activations, checkpointed", passes.activations, work)
    passing("activations, all kept", passes.activations, plain_work)
    passing("one layer, backward", passes.backward_work, work)
    table.add_section()
    for stage in STAGES:
        row(f"= {STAGE_TITLES[stage]}", [each.stages[stage].total for each in checked])
    table.add_section()
    for title, found in (("peak, checkpointed", checked), ("peak, all kept", plain)):
        row(title, [each.peak for each in found])
        table.add_row("", *(verdict(each.peak, gpu_memory) for each in found))
    row("CPU memory, all machines", [each.cpu for each in checked])
    names = {True: "float32", False: "bfloat16"}
    table.add_row("weights updated in", *(names[updates_in_float32(work, each.backend)] for each in checked))
    return table


def print_report(console: Console, sizes: Architecture, work: Workload, gpus: int, gpu_memory_gib: float) -> None:
    """The architecture, the workload, the table and the advice."""
    gpu_memory = gpu_memory_gib * GIB
    console.print(
        f"{sizes.name}: {parameters(sizes) / 1e9:.2f}B parameters, hidden {sizes.hidden}, {sizes.layers} layers,"
        f" {sizes.heads} heads ({sizes.kv_heads} for keys), intermediate {sizes.intermediate}, vocabulary {sizes.vocab}"
    )
    trained = "all weights" if work.lora_rank is None else f"adapters of rank {work.lora_rank}"
    frozen = ", the rest in 4 bits" if work.quantized else ""
    console.print(
        f"{gpus} x {gpu_memory_gib:g} GiB; per GPU {work.batch} completions a micro-batch, {work.rollout_rows} sampled"
        f" at once, {work.prompt_length} + {work.completion_length} tokens; {trained} trained{frozen}"
    )
    console.print(table_of(sizes, work, gpus, gpu_memory))
    console.print(
        f"Not all parts exist at once, so the peak is less than their sum. fits: at most {USABLE:.0%} of the GPU."
    )
    for line in advice(sizes, work, gpus, gpu_memory):
        console.print(line)
