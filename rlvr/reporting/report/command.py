"""`rlvr report`: one HTML file about a run, or several. Heavy imports happen inside the command."""

from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.errors import UserError
from rlvr.reporting.report import REPORT_FILE


def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="the trainer.output_dir of a run, or of several to compare")],
    output: Annotated[
        Path | None, typer.Option(help="the file; default: report.html in RUN_DIR, of several in the working directory")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="build it anew while the run goes on, until Ctrl-C")] = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several beside one another."""
    with user_errors():
        path = output or (run_dirs[0] if len(run_dirs) == 1 else Path()) / REPORT_FILE
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder; name a file, such as {path / REPORT_FILE}.")

        from rlvr.reporting.report.building import build_report

        if not watch:
            build_report(run_dirs, path)
            typer.echo(f"report  {path}")
            return
        _watch(run_dirs, path)


def _watch(run_dirs: list[Path], path: Path) -> None:
    from rlvr.reporting.report import watching
    from rlvr.reporting.report.verdict import status_of

    typer.echo(f"report  {path}  (Ctrl-C ends the watching, not the run)")
    try:
        watching.watch(
            run_dirs,
            path,
            lambda runs, took: typer.echo(
                "; ".join(f"{run.name}: {status_of(run)}" for run in runs) + f"  (built in {took:.1f} s)"
            ),
        )
    except KeyboardInterrupt:
        typer.echo("no longer watching")
