"""`rlvr extrapolate`: new weights from those of checkpoints. Heavy imports happen inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.logits_commands import logits_app
from rlvr.extrapolation.options import (
    SHARD_GB,
    AdapterBaseOption,
    BaseOption,
    CopyOption,
    DtypeOption,
    NoDefaultsOption,
    OutOption,
    ShardOption,
    TunedOption,
    check_number,
    number,
    pattern_and_alpha,
)
from rlvr.extrapolation.search_command import search_alpha

extrapolate_app = typer.Typer(no_args_is_help=True, help="Compute checkpoints from checkpoints, without training.")
extrapolate_app.command("search")(search_alpha)
extrapolate_app.add_typer(logits_app, name="logits")


@extrapolate_app.command("weights")
def extrapolate_weights(
    out: OutOption,
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="with --fit: 3 checkpoints or more")] = None,
    base: Annotated[Path | None, typer.Option(help="the earlier checkpoint, where alpha is 0")] = None,
    tuned: Annotated[Path | None, typer.Option(help="the later checkpoint, where alpha is 1")] = None,
    alpha: Annotated[float | None, typer.Option(help="how far to go, in distances from base to tuned")] = None,
    at_step: Annotated[float | None, typer.Option(help="how far to go, as a step of the training run")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="go along each weight's line through all CHECKPOINTS")] = False,
    min_r2: Annotated[float, typer.Option(help="with --fit: copy tensors whose lines fit worse")] = 0.0,
    alpha_for: Annotated[list[str] | None, typer.Option(help="another alpha for such names, as '*.mlp.*=1.2'")] = None,
    copy: CopyOption = None,
    no_default_copies: NoDefaultsOption = False,
    dtype: DtypeOption = None,
    max_shard_gb: ShardOption = SHARD_GB,
    adapter_base: AdapterBaseOption = None,
) -> None:
    """Where the weights will be at a later step: A + alpha (B - A), or a line through more checkpoints."""
    with user_errors():
        own_alphas = tuple(pattern_and_alpha(each) for each in alpha_for or ())
        if fit:
            if not checkpoints or base or tuned or alpha is not None or own_alphas:
                raise ExtrapolationError(
                    "--fit takes its checkpoints after the options and none of --base, --tuned, --alpha and"
                    " --alpha-for; write --fit A B C --at-step N."
                )
            if at_step is None:
                raise ExtrapolationError("--fit needs to know how far to go; give --at-step N.")
        elif checkpoints or base is None or tuned is None:
            raise ExtrapolationError("Which checkpoints is not clear; give --base A --tuned B, or --fit A B C.")
        elif (alpha is None) == (at_step is None):
            raise ExtrapolationError("How far to go is not clear; give either --alpha or --at-step.")
        check_number("--alpha", alpha)
        check_number("--at-step", at_step)
        if not min_r2 <= 1.0 or (min_r2 != 0.0 and not fit):
            raise ExtrapolationError("--min-r2 is the least R^2 of --fit, 1 at most; leave it out without --fit.")

        from rlvr.extrapolation import running

        options = running.Options(out, dtype, max_shard_gb, copy or (), own_alphas, not no_default_copies, adapter_base)
        if fit:
            assert at_step is not None
            running.run_line_fit(checkpoints or [], at_step, min_r2, options)
        else:
            assert base is not None
            assert tuned is not None
            running.run_extrapolation(base, tuned, alpha, at_step, options)


@extrapolate_app.command("average")
def average_weights(
    checkpoints: Annotated[list[Path], typer.Argument(help="any number; whatever is copied comes from the last")],
    out: OutOption,
    weights: Annotated[str | None, typer.Option(help="such as 0.25,0.75, of sum 1; default: equal ones")] = None,
    copy: CopyOption = None,
    dtype: DtypeOption = None,
    max_shard_gb: ShardOption = SHARD_GB,
    adapter_base: AdapterBaseOption = None,
) -> None:
    """The weighted mean of checkpoints, norms and embeddings included."""
    with user_errors():
        shares = [1.0 / len(checkpoints)] * len(checkpoints)
        if weights is not None:
            shares = [number("--weights", each) for each in weights.split(",")]

        from rlvr.extrapolation import running

        # A mean is no prediction, so nothing speaks against norms and embeddings.
        options = running.Options(out, dtype, max_shard_gb, copy or (), (), False, adapter_base)
        running.run_average(checkpoints, shares, options)


@extrapolate_app.command("timber")
def timber_weights(
    base: BaseOption,
    tuned: TunedOption,
    out: OutOption,
    keep: Annotated[float, typer.Option(help="the share of the weak directions that stays, 0 to 1")] = 0.0,
    copy: CopyOption = None,
    no_default_copies: NoDefaultsOption = False,
    dtype: DtypeOption = None,
    max_shard_gb: ShardOption = SHARD_GB,
    adapter_base: AdapterBaseOption = None,
) -> None:
    """Timber: of what training added, keep the strong directions and shrink the rest towards the base."""
    with user_errors():
        if not 0.0 <= keep <= 1.0:
            raise ExtrapolationError(f"--keep is {keep:g}; give a share from 0 to 1.")

        from rlvr.extrapolation import running

        options = running.Options(out, dtype, max_shard_gb, copy or (), (), not no_default_copies, adapter_base)
        running.run_timber(base, tuned, keep, options)
