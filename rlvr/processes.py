"""Brings the processes of a run together."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from accelerate import PartialState
from torch.distributed import DistError

from rlvr.errors import UserError


def join_processes(settings: Mapping[str, Any]) -> PartialState:
    """This process's place among those of the run; `settings` are fields of GRPOConfig.

    Raises UserError when the port is taken, or when not all processes come within `ddp_timeout` seconds.
    """
    try:
        return PartialState(cpu=settings["use_cpu"], timeout=timedelta(seconds=settings["ddp_timeout"]))
    except DistError as error:
        raise _not_joined(str(error), settings["ddp_timeout"]) from error


def _not_joined(reason: str, timeout_s: int) -> UserError:
    place = os.environ
    rank, size = place.get("RANK"), place.get("WORLD_SIZE")
    address, port = place.get("MASTER_ADDR"), place.get("MASTER_PORT")
    if "EADDRINUSE" in reason:
        return UserError(
            f"Port {port} of {address} is in use, so the processes cannot meet there; choose another by"
            " `accelerate launch --main_process_port PORT`, or end what uses it."
        )
    return UserError(
        f"Process {rank} of {size} waited {timeout_s} s (trainer.ddp_timeout) at {address}:{port}, and not all of the"
        " others came; start all of them, with the same address, port and --num_processes on every machine."
    )
