"""Writes the weights of one model in the formats that checkpoints come in, and measures what reading them takes."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import ROOT

StateDict = Mapping[str, Tensor]
NUM_SHARDS = 3


def write_safetensors(folder: Path, weights: StateDict) -> None:
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})


def write_sharded_safetensors(folder: Path, weights: StateDict) -> None:
    _write_shards(folder, weights, "model", "safetensors", lambda part, path: save_file(part, path))


def write_bin(folder: Path, weights: StateDict) -> None:
    torch.save(dict(weights), folder / "pytorch_model.bin")


def write_sharded_bin(folder: Path, weights: StateDict) -> None:
    _write_shards(folder, weights, "pytorch_model", "bin", torch.save)


def _write_shards(folder: Path, weights: StateDict, stem: str, suffix: str, save: Callable[..., None]) -> None:
    weight_map = {}
    for shard in range(NUM_SHARDS):
        names = list(weights)[shard::NUM_SHARDS]
        file = f"{stem}-{shard + 1:05}-of-{NUM_SHARDS:05}.{suffix}"
        save({name: weights[name].clone() for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    ordered = {name: weight_map[name] for name in weights}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": ordered}))


def write_dcp(folder: Path, weights: StateDict) -> None:
    """As accelerate has it: the state dict of the model under "model", in a folder of its own."""
    dcp.save({"model": dict(weights)}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)


def write_plain_dcp(folder: Path, weights: StateDict) -> None:
    dcp.save(dict(weights), checkpoint_id=folder, no_dist=True)


def write_zero(folder: Path, weights: StateDict, stage: int, world: int = 3, frozen: tuple[str, ...] = ()) -> None:
    """As DeepSpeed lays out two parameter groups, matrices and the rest; buffers are what is not float32.

    Of stage 3 a rank's partition of a group is in pieces that end where a parameter does.
    """
    step = folder / "global_step7"
    step.mkdir()
    (folder / "latest").write_text("global_step7")
    buffers = {name: value for name, value in weights.items() if value.dtype != torch.float32}
    trained = {name: value for name, value in weights.items() if name not in (*buffers, *frozen)}
    groups = [{n: v for n, v in trained.items() if (v.dim() == 2) == matrices} for matrices in (True, False)]
    groups = [group for group in groups if group]
    kept = {name: weights[name] for name in frozen}
    for rank in range(world):
        fragments = {name: _share(value, rank, world) if stage == 3 else value for name, value in kept.items()}
        model = {
            "module": {name: value if name in buffers else torch.empty(0) for name, value in weights.items()},
            "buffer_names": list(buffers),
            "param_shapes": [{name: value.shape for name, value in group.items()} for group in groups],
            "frozen_param_shapes": {name: value.shape for name, value in kept.items()},
            "frozen_param_fragments": fragments,
            "shared_params": {},
        }
        if stage == 3 or rank == 0:
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model, step / f"{prefix}mp_rank_00_model_states.pt")
        states: dict[str, Any] = {
            "zero_stage": stage,
            "partition_count": world if stage == 3 else [world] * len(groups),
        }
        if stage == 3:
            states["fp32_flat_groups"] = [_share(value, rank, world) for group in groups for value in group.values()]
        else:
            states["single_partition_of_fp32_groups"] = [_partition(group, rank, world) for group in groups]
        torch.save({"optimizer_state_dict": states}, step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def _share(value: Tensor, rank: int, world: int) -> Tensor:
    """A rank's part of a parameter, of equal size on each."""
    size = -(-value.numel() // world)
    filled = torch.cat([value.reshape(-1), torch.full((size * world - value.numel(),), torch.nan)])
    return filled[rank * size : (rank + 1) * size].clone()


def _partition(group: StateDict, rank: int, world: int) -> Tensor:
    """A rank's part of the joined parameters, filled up to a multiple of twice the ranks."""
    joined = torch.cat([value.reshape(-1) for value in group.values()])
    size = -(-joined.numel() // (2 * world)) * 2
    filled = torch.cat([joined, torch.full((size * world - joined.numel(),), torch.nan)])
    return filled[rank * size : (rank + 1) * size].clone()


def write_zero2(folder: Path, weights: StateDict) -> None:
    write_zero(folder, weights, 2)


def write_zero3(folder: Path, weights: StateDict) -> None:
    write_zero(folder, weights, 3)


WRITERS: dict[str, Callable[[Path, StateDict], None]] = {
    "safetensors": write_safetensors,
    "sharded_safetensors": write_sharded_safetensors,
    "bin": write_bin,
    "sharded_bin": write_sharded_bin,
    "dcp": write_dcp,
    "plain_dcp": write_plain_dcp,
    "zero2": write_zero2,
    "zero3": write_zero3,
}


def peak_growths(small: Path, large: Path, name: str, *reads: tuple[int, int | None]) -> list[int]:
    """How many bytes a fresh process has at most while it reads rows of a large checkpoint, above those before.

    Mapped pages count too. A read of the small checkpoint goes before, so that all that is imported is. Linux only.
    """
    program = (
        "from pathlib import Path\nfrom rlvr.extrapolation.checkpoints import open_checkpoint\n"
        "def kib(field):\n"
        "    return int(Path('/proc/self/status').read_text().partition(field)[2].split()[0])\n"
        f"small = open_checkpoint(Path({str(small)!r}))\n"
        "for each in small.names(): small.read(each)\n"
        f"for first, last in {reads!r}:\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"  # the peak is what there is now
        "    before = kib('VmRSS:')\n"
        f"    open_checkpoint(Path({str(large)!r})).read({name!r}, first, last)\n"
        "    print(kib('VmHWM:') - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [int(line) * 1024 for line in done.stdout.split()]
