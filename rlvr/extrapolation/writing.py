"""Computes a checkpoint from others and writes it, some rows of a tensor at a time."""

import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.operations import OPERATIONS, line_sums, r_squared
from rlvr.extrapolation.output_folder import new_folder, writing_to
from rlvr.extrapolation.provenance import provenance_of, write_json
from rlvr.extrapolation.rules import POOR_FIT, Treatment
from rlvr.extrapolation.safetensors_file import ShardWriter, in_file_order, index_of, num_bytes, shards_of
from rlvr.extrapolation.side_files import copy_side_files, side_folders
from rlvr.extrapolation.sources import WHOLE, Rows, Sources, dtype_name, row_blocks
from rlvr.extrapolation.view import TensorInfo

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 3 * THREADS  # results that may wait to be written, so that a slow write does not stop the threads
INDEX = "model.safetensors.index.json"
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, KEPT_BYTES = -3, -1, 1 << 25  # names in malloc.h, and the most it takes


@dataclass(frozen=True)
class Job:
    """A checkpoint to be written: an operation of `OPERATIONS`, its settings, and what becomes of each tensor."""

    operation: str
    settings: Mapping[str, Any]
    sources: Sources
    treatments: Mapping[str, Treatment]
    dtype: torch.dtype | None  # of floating-point tensors; None: as the tuned checkpoint stores each
    adapter_base: Path | None = None  # the model of adapters, where not the one that they name

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes of what is written."""
        stored = self.sources.infos
        if self.dtype is None:
            return dict(stored)
        return {
            name: replace(info, dtype=self.dtype) if info.dtype.is_floating_point else info
            for name, info in stored.items()
        }

    def settings_of(self, name: str) -> Mapping[str, Any]:
        alpha = self.treatments[name].alpha
        return self.settings if alpha is None else {**self.settings, "alpha": alpha}


@dataclass(frozen=True)
class Written:
    """What was written, and how long it took."""

    files: int
    num_bytes: int
    seconds: float


def gated(
    sources: Sources,
    treatments: Mapping[str, Treatment],
    steps: Sequence[int],
    min_r2: float,
    advance: Callable[[int], None],
) -> tuple[dict[str, Treatment], dict[str, float]]:
    """The treatments for a line fit, where tensors of an R^2 below `min_r2` are copied too, and R^2 by tensor.

    Reads all tensors that are not copied once; `advance` is told the values read.
    """

    def sums(name: str, rows: Rows) -> tuple[float, float]:
        tensors = sources.read(name, rows)
        if (error := sources.not_finite(name, tensors)) is not None:
            raise error
        return line_sums(tensors, steps)

    names = [name for name, treatment in treatments.items() if not treatment.copied]
    parts = [(name, rows) for name in names for rows in row_blocks(sources.infos[name])]
    totals = {name: (0.0, 0.0) for name in names}
    found = _in_order([partial(sums, name, rows) for name, rows in parts])
    for (name, rows), (residual, total) in zip(parts, found, strict=True):
        totals[name] = totals[name][0] + residual, totals[name][1] + total
        advance(_num_values(sources.infos[name], rows))
    fits = {name: r_squared(*each) for name, each in totals.items()}
    poor = {name: Treatment(POOR_FIT, copied=True) for name, fit in fits.items() if fit < min_r2}
    return {**treatments, **poor}, fits


def write_checkpoint(
    job: Job,
    out: Path,
    max_shard_bytes: int,
    notes: Mapping[str, Any],
    advance: Callable[[int], None],
    report: Callable[[str], None],
) -> Written:
    """Writes the tensors, the tuned model's config and tokenizer, and `provenance.json` into the new folder `out`.

    The folder appears at the end, complete and on the disk; an error leaves nothing. At any time no more is in memory
    than a few blocks of rows (for Timber, a few tensors). `notes` go into the provenance; `advance` is told the values
    written, `report` what the user should know.

    Raises ExtrapolationError if `out` exists or cannot be written, if a tensor has values that are NaN or infinite, and
    if a result lies outside the range of its dtype.
    """
    started = time.perf_counter()
    _keep_freed_blocks()
    infos = job.infos()
    job.sources.check_arithmetic([name for name, treatment in job.treatments.items() if not treatment.copied])
    shards = shards_of(infos, max_shard_bytes)
    total = sum(num_bytes(info) for info in infos.values())
    with new_folder(out, total, report) as folder:
        for shard in shards:
            with ShardWriter(folder / shard.file, shard.infos, out) as writer:
                _fill(writer, job, shard.infos, advance)
        with writing_to(out):
            if len(shards) > 1:
                (folder / INDEX).write_text(index_of(shards), encoding="utf-8")
            folders = side_folders(job.sources.views, job.adapter_base)
            copied = copy_side_files(folders, folder, None if job.dtype is None else dtype_name(job.dtype))
            if "model" not in copied:
                report(f"no config.json lies beside the checkpoints; put that of the model into {out}")
            facts = provenance_of(job.sources, job.treatments, {**notes, "side_files": copied})
            write_json(folder / "provenance.json", facts)
    return Written(len(shards), total, time.perf_counter() - started)


def _fill(writer: ShardWriter, job: Job, infos: Mapping[str, TensorInfo], advance: Callable[[int], None]) -> None:
    by_rows = OPERATIONS[job.operation].by_rows
    parts: list[tuple[str, Rows]] = []
    for name in in_file_order(infos):
        blocks = row_blocks(infos[name]) if by_rows or job.treatments[name].copied else [WHOLE]
        parts += [(name, rows) for rows in blocks]
    tasks = [partial(_result, job, name, rows, infos[name]) for name, rows in parts]
    results = _in_order(tasks) if by_rows else _in_order(tasks, threads=1, ahead=1)
    for (name, rows), result in zip(parts, results, strict=True):
        writer.append(result)
        advance(_num_values(infos[name], rows))


def _result(job: Job, name: str, rows: Rows, info: TensorInfo) -> Tensor:
    """The tensor, or these rows of it, as it is stored."""
    sources = job.sources
    if job.treatments[name].copied:
        tensors = [sources.read_tuned(name, rows)]
        result = tensors[0]
    else:
        tensors = sources.read(name, rows)
        operation = OPERATIONS[job.operation]
        if not operation.by_rows and (error := sources.not_finite(name, tensors)) is not None:
            raise error  # a decomposition of NaN fails without saying so
        result = operation.apply(tensors, job.settings_of(name), info.dtype)
    result = result.to(info.dtype).contiguous()
    if info.dtype.is_floating_point and not _is_finite(result):
        raise sources.not_finite(name, tensors) or ExtrapolationError(
            f"{name} leaves the range of {dtype_name(info.dtype)}; go less far, or give --dtype float32."
        )
    return result


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are; a sum is NaN or infinite if one of them is, and much quicker than a look at each."""
    if tensor.dtype.itemsize == 1:  # float8 types have no sum
        tensor = tensor.float()
    return bool(tensor.sum().isfinite()) or bool(torch.isfinite(tensor).all())


def _num_values(info: TensorInfo, rows: Rows) -> int:
    first, last = rows
    return info.numel if last is None else info.numel // info.shape[0] * (last - first)


@contextmanager
def _one_thread_each(workers: int) -> Iterator[None]:
    """Meanwhile torch does not split what each of several threads does into threads again, which is slow."""
    before = torch.get_num_threads()
    if workers > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_blocks() -> None:
    """Blocks that are let go stay the process's, for the next ones; nothing where the C library has no such setting.

    glibc gives memory of their size back to the system each time, which then fills it with zeros for the next block.
    """
    settings = getattr(ctypes.CDLL(None), "mallopt", None)
    if settings is not None:
        for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            settings(name, KEPT_BYTES)


def _in_order(tasks: Sequence[Callable[[], Any]], threads: int = THREADS, ahead: int = AHEAD) -> Iterator[Any]:
    """Results of the tasks in their order, of which at most `ahead` are there or being computed besides the next."""
    with _one_thread_each(threads), ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                begun.append(pool.submit(task))
                if len(begun) > ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
