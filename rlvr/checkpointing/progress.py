"""What a run holds between two optimiser steps beside weights, optimiser, schedule and random numbers.

TRL and transformers keep none of it in a checkpoint: completions that are still to be trained on, sums towards the next
log record, what the judge remembers. Each process writes its own file.
"""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from rlvr.errors import CheckpointError
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.regularizers.base import Prepared
from rlvr.ops.support import Support
from rlvr.ops.token_stats import TokenStats
from rlvr.types import Microbatch

FILE = "progress-{:05d}.pt"
RECORDS = [Microbatch, Denominator, TokenStats, Support, Prepared]  # what such a file may hold beside plain values


@dataclass(frozen=True)
class Progress:
    """The state of one process."""

    batches: list[Microbatch] | None  # of the current generation; None when the next step samples anew
    metrics: dict[str, list[float]]  # recorded since the last log record
    loss_sum: Tensor  # [] likewise
    last_logged: int  # the step of that record
    completions: dict[str, list[Any]]  # the newest, for the step's table; on the main process
    judge: dict[str, list[list[Any]]]  # judgements that are remembered


def save_progress(progress: Progress, checkpoint: Path, rank: int) -> None:
    """Writes this process's file into the folder of a checkpoint."""
    content = {field.name: getattr(progress, field.name) for field in fields(progress)}
    torch.save(content, checkpoint / FILE.format(rank))


def load_progress(checkpoint: Path, rank: int, device: torch.device) -> Progress:
    """This process's state, its tensors on the device. Raises CheckpointError if the file is missing or damaged."""
    path = checkpoint / FILE.format(rank)
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is not what torch.save writes")
        with torch.serialization.safe_globals(RECORDS):
            content = torch.load(path, map_location=device, weights_only=True)
        return Progress(**content)
    except (OSError, RuntimeError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read ({reason}); remove the folder of its checkpoint to go on from the one before it."
        ) from error
