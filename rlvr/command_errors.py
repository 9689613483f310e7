"""How every command of `rlvr` ends when the user can mend what went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rlvr.errors import UserError


@contextmanager
def user_errors() -> Iterator[None]:
    """Ends the command with one sentence and the error's exit code."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("error: Interrupted; nothing of the current step was saved.", err=True)
        raise typer.Exit(130) from None
