"""Time and peak memory of `rlvr extrapolate weights` beside plain copying, and beside mergekit where it is installed.

    python scripts/bench_extrapolation.py [--rounds 3] [--scale 1.0] [--zero3] [--output FILE]

A pair of bf16 checkpoints in four files each: a Qwen2 of hidden size 1,536 with 24 layers, 50,000 tokens and an untied
head, 0.93 billion parameters; `--scale` shortens layers and vocabulary. All tensors are extrapolated, none is copied.
Every measurement is a process of its own, start-up included, and the contestants alternate; what the one before left
to be written to the disk is written first, and the sources stay in the page cache. Ours ends when the result is on the
disk, like the second kind of copying and unlike the first and mergekit.

With `--zero3` ours also takes the same weights from checkpoints of two ranks as DeepSpeed ZeRO-3 writes them: float32,
every tensor cut among the ranks (without Adam's moments, which are not read).
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HIDDEN, LAYERS, INTERMEDIATE, VOCABULARY, HEADS = 1536, 24, 4992, 50_000, 12
FILES = 4
ALPHA = 1.5
OURS, COPY, COPY_SYNCED, MERGEKIT = "rlvr", "copy", "copy, on disk", "mergekit"
OURS_ZERO3, RANKS = "rlvr, from ZeRO-3", 2
COPY_PROGRAM = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
SYNC_PROGRAM = (
    f"{COPY_PROGRAM}; import os, pathlib; [os.fsync(os.open(p, 0)) for p in pathlib.Path(sys.argv[2]).iterdir()]"
)


# ---- the checkpoints -------------------------------------------------------------------------------------------------


def sizes(scale: float) -> tuple[int, int]:
    """Layers and vocabulary."""
    return max(1, round(LAYERS * scale)), max(16, round(VOCABULARY * scale))


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    layers, vocabulary = sizes(scale)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in (f"model.layers.{n}." for n in range(layers)):
        for name in "qkvo":
            found[f"{layer}self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        for name in "qkv":
            found[f"{layer}self_attn.{name}_proj.bias"] = (HIDDEN,)
        for name in ("gate", "up"):
            found[f"{layer}mlp.{name}_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{layer}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        for name in ("input", "post_attention"):
            found[f"{layer}{name}_layernorm.weight"] = (HIDDEN,)
    return {**found, "model.norm.weight": (HIDDEN,), "lm_head.weight": (vocabulary, HIDDEN)}


def make(folder: Path, scale: float, seed: int) -> None:
    """A checkpoint of random values; large tensors share them, which takes less time and changes none of the times."""
    import torch
    from safetensors.torch import save_file

    wanted = shapes(scale)
    values = torch.randn(max(VOCABULARY, 2 * INTERMEDIATE) * HIDDEN, generator=torch.Generator().manual_seed(seed))
    values = (0.02 * values).bfloat16()
    folder.mkdir()
    write_config(folder, scale)
    names = list(wanted)
    per_file = -(-len(names) // FILES)
    where = {}
    for number in range(FILES):
        file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
        part = names[number * per_file : (number + 1) * per_file]
        tensors = {name: values[: torch.Size(wanted[name]).numel()].reshape(wanted[name]).clone() for name in part}
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def make_zero3(folder: Path, scale: float, seed: int) -> None:
    """The same, float32 and cut among the ranks."""
    import torch

    wanted = shapes(scale)
    values = 0.02 * torch.randn(
        max(VOCABULARY, 2 * INTERMEDIATE) * HIDDEN, generator=torch.Generator().manual_seed(seed)
    )
    step = folder / "global_step1"
    step.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    write_config(folder, scale)
    described = {name: torch.Size(shape) for name, shape in wanted.items()}
    for rank in range(RANKS):
        sizes_each = [-(-shape.numel() // RANKS) for shape in described.values()]
        pieces = [values[rank * size : (rank + 1) * size].clone() for size in sizes_each]
        states = {"zero_stage": 3, "partition_count": RANKS, "fp32_flat_groups": pieces}
        torch.save({"optimizer_state_dict": states}, step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        model = {
            "module": {name: torch.empty(0) for name in wanted},
            "buffer_names": [],
            "param_shapes": [described],
            "frozen_param_shapes": {},
            "frozen_param_fragments": {},
            "shared_params": {},
        }
        torch.save(model, step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")


def write_config(folder: Path, scale: float) -> None:
    layers, vocabulary = sizes(scale)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


# ---- the contestants -------------------------------------------------------------------------------------------------


def command(kind: str, folder: Path, out: Path) -> list[str]:
    base, tuned = folder / "base", folder / "tuned"
    if kind in (OURS, OURS_ZERO3):
        base, tuned = (each if kind == OURS else each.with_name(f"{each.name}-zero3") for each in (base, tuned))
        pair = ["--base", str(base), "--tuned", str(tuned), "--alpha", str(ALPHA)]
        return [
            sys.executable,
            "-m",
            "rlvr.cli",
            "extrapolate",
            "weights",
            *pair,
            "--no-default-copies",
            "--out",
            str(out),
        ]
    if kind == MERGEKIT:
        models = [{"model": str(tuned), "parameters": {"weight": ALPHA}}]
        recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": models, "dtype": "bfloat16"}
        (folder / "mergekit.yaml").write_text(json.dumps(recipe))
        program = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(folder / "mergekit.yaml"), str(out)]
        return [*program, "--lazy-unpickle", "--no-copy-tokenizer"]
    return [sys.executable, "-c", COPY_PROGRAM if kind == COPY else SYNC_PROGRAM, str(tuned), str(out)]


def measure(kind: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak resident memory in MB of a process."""
    out = folder / "out"
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command(kind, folder, out), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not any(out.glob("*.safetensors")):
        raise SystemExit(f"error: {kind} failed with exit status {process.returncode}")
    shutil.rmtree(out)
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the layers and of the vocabulary")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoints go for the time being; default: the system's"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--zero3", action="store_true", help="ours from ZeRO-3 checkpoints as well")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        for seed, name in enumerate(("base", "tuned")):
            make(options.make / name, options.scale, seed)
            if options.zero3:
                make_zero3(options.make / f"{name}-zero3", options.scale, seed)
        return
    kinds = [
        OURS,
        *([OURS_ZERO3] if options.zero3 else []),
        COPY,
        COPY_SYNCED,
        *([MERGEKIT] if importlib.util.find_spec("mergekit") else []),
    ]
    results: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        # By a process of its own, as a child's peak counts the memory that its parent had when it began.
        making = [sys.executable, __file__, "--make", folder, "--scale", str(options.scale)]
        subprocess.run([*making, *(["--zero3"] if options.zero3 else [])], check=True)
        for number in range(options.rounds):
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                results[kind].append(measure(kind, Path(folder)))
    found = shapes(options.scale).values()
    counts = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in found]
    limit = 3 * 4 * max(counts) / 2**20 + 400
    title = f"{sum(counts) / 1e9:.2f} billion parameters, {platform.machine()}, {os.cpu_count()} CPUs"
    table = Table("", "seconds", "times ours", "peak MB", title=title, caption=f"aim: a peak below {limit:.0f} MB")
    for kind in kinds:
        seconds = [each[0] for each in results[kind]]
        ratios = [each[0] / ours[0] for each, ours in zip(results[kind], results[OURS], strict=True)]
        peak = max(each[1] for each in results[kind])
        spread = f"{statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}]"
        table.add_row(kind, spread, f"{statistics.median(ratios):.2f}", f"{peak:.0f}")
    Console(width=100).print(table)
    if options.output:
        facts = {"parameters": sum(counts), "alpha": ALPHA, "machine": platform.machine(), "cpus": os.cpu_count()}
        options.output.write_text(json.dumps({**facts, "seconds_and_peak_mb": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
