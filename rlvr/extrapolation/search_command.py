"""`rlvr extrapolate search`: the alpha of weight extrapolation, chosen by validation prompts."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.options import (
    SHARD_GB,
    AdapterBaseOption,
    BaseOption,
    CopyOption,
    DtypeOption,
    NoDefaultsOption,
    ShardOption,
    TunedOption,
    number,
    pattern_and_alpha,
)

GRID = "1,1.5,2,3"
MAX_EVALUATIONS = 8


def search_alpha(
    base: BaseOption,
    tuned: TunedOption,
    recipe: Annotated[Path, typer.Option(help="its evaluation.validation chooses, its evaluation.sets only report")],
    out: Annotated[Path, typer.Option(help="a folder for what is found and the best model; called again, it goes on")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as evaluation.num_samples=16")] = None,
    alpha_grid: Annotated[str | None, typer.Option(help=f"the alphas to try; default: {GRID}")] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="find the alphas to try, closer and closer")] = False,
    max_evaluations: Annotated[
        int | None, typer.Option(help=f"with --adaptive: most alphas to try; default: {MAX_EVALUATIONS}")
    ] = None,
    metric: Annotated[str, typer.Option(help="pass@K, greedy or reward; the mean over sets of means")] = "pass@1",
    alpha_for: Annotated[list[str] | None, typer.Option(help="a fixed alpha for such names, as '*.mlp.*=1.2'")] = None,
    copy: CopyOption = None,
    no_default_copies: NoDefaultsOption = False,
    dtype: DtypeOption = None,
    max_shard_gb: ShardOption = SHARD_GB,
    adapter_base: AdapterBaseOption = None,
) -> None:
    """Evaluate A + alpha (B - A) for several alphas on validation prompts, and write the best.

    The test sets are evaluated once it is chosen, at alpha = 1 and at the best.
    """
    with user_errors():
        own_alphas = tuple(pattern_and_alpha(each) for each in alpha_for or ())
        if adaptive and alpha_grid is not None:
            raise ExtrapolationError("--adaptive finds the alphas itself; leave out --alpha-grid, or --adaptive.")
        if max_evaluations is not None and not (adaptive and max_evaluations >= 2):
            raise ExtrapolationError("--max-evaluations is how many alphas --adaptive may try; give 2 or more with it.")
        grid = sorted({number("--alpha-grid", each) for each in (alpha_grid or GRID).split(",")})
        if grid == [1.0]:
            raise ExtrapolationError(f"--alpha-grid has no alpha to compare with 1; give some, such as {GRID}.")

        from rlvr.extrapolation import running, search_running

        options = running.Options(out, dtype, max_shard_gb, copy or (), own_alphas, not no_default_copies, adapter_base)
        plan = search_running.Plan(metric, None if adaptive else tuple(grid), max_evaluations or MAX_EVALUATIONS)
        search_running.run_search(base, tuned, recipe, overrides or [], plan, options)
