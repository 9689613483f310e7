"""Options that the commands of `rlvr extrapolate` share, and how their texts become numbers."""

import math
from pathlib import Path
from typing import Annotated

import typer

from rlvr.errors import ExtrapolationError

BaseOption = Annotated[Path, typer.Option(help="the earlier checkpoint, or the model that training began from")]
TunedOption = Annotated[Path, typer.Option(help="the later checkpoint, from which the rest is copied")]
OutOption = Annotated[Path, typer.Option(help="the new folder; it appears at the end, complete")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")]
CopyOption = Annotated[list[str] | None, typer.Option("--copy", help="copy tensors of such names, as '*.mlp.*'")]
NoDefaultsOption = Annotated[
    bool, typer.Option("--no-default-copies", help="do not copy norms, embeddings and the head unless --copy says so")
]
ShardOption = Annotated[float, typer.Option("--max-shard-gb", help="size of the largest file, in GB of 10^9 bytes")]
AdapterBaseOption = Annotated[Path | None, typer.Option(help="the model of adapters, if not the one that they name")]
SHARD_GB = 5.0


def pattern_and_alpha(text: str) -> tuple[str, float]:
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern:
        raise ExtrapolationError(f"--alpha-for {text!r} is no pattern with an alpha; write it as '*.mlp.*=1.2'.")
    return pattern, number("--alpha-for", value)


def number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ExtrapolationError(f"{option}: {text!r} is no number; give one such as 1.5.") from error
    check_number(option, value)
    return value


def check_number(option: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ExtrapolationError(f"{option} is {value}; give a finite number such as 1.5.")
