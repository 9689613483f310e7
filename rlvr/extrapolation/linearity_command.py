"""`rlvr linearity`: how linear in the step a run moved. Heavy imports happen inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.errors import ExtrapolationError

LEAST_PER_TENSOR = 50


def linearity(
    run_dir: Annotated[Path, typer.Argument(help="the trainer.output_dir of a run with 3 checkpoints or more")],
    out: Annotated[Path | None, typer.Option(help="the folder of the report; default: RUN_DIR/linearity")] = None,
    share: Annotated[float, typer.Option(help=f"of each tensor's weights, {LEAST_PER_TENSOR} at least")] = 0.001,
    min_range: Annotated[float, typer.Option(min=0.0, help="keep weights that moved over more than this")] = 1e-4,
    min_distinct: Annotated[int, typer.Option(min=2, help="keep weights that take this many values or more")] = 4,
    min_move: Annotated[float, typer.Option(min=0.0, help="keep tokens whose log-prob moved by more nats")] = 0.2,
    no_logprobs: Annotated[bool, typer.Option("--no-logprobs", help="measure the weights only")] = False,
    prompts: Annotated[int, typer.Option(min=1, help="prompts for which the base policy samples")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="completions of each prompt")] = 8,
    seed: Annotated[int, typer.Option(help="of which weights and prompts are looked at, and of sampling")] = 0,
) -> None:
    """Measure how linear in the step a run's weights and log-probabilities moved."""
    with user_errors():
        if not 0.0 < share <= 1.0:
            raise ExtrapolationError(f"--share is {share:g}; give a share of the weights above 0 and up to 1.")

        from rlvr.extrapolation.linearity_measure import SampleRule
        from rlvr.extrapolation.linearity_running import Options, run_linearity

        rule = SampleRule(share, LEAST_PER_TENSOR, min_range, min_distinct, seed)
        run_linearity(Options(run_dir, out or run_dir / "linearity", rule, not no_logprobs, min_move, prompts, samples))
