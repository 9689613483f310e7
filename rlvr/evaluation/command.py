"""`rlvr eval`: models on the held-out sets of a recipe. Heavy imports happen inside the command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.config import load_recipe
from rlvr.errors import EvaluationError


class Kind(StrEnum):
    """Of held-out sets."""

    TEST = "test"
    VALIDATION = "validation"


def evaluate(
    recipe: Annotated[Path, typer.Argument(help="a recipe file: its sets, rewards and sampling settings")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as evaluation.num_samples=64")] = None,
    model: Annotated[str | None, typer.Option(help="a folder, adapter or Hub id; default: the recipe's model")] = None,
    base: Annotated[str | None, typer.Option(help="a model to compare with, prompt by prompt")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="a run directory: each checkpoint of it")] = None,
    on: Annotated[Kind, typer.Option(help="which held-out sets; choose by validation sets only")] = Kind.TEST,
    output: Annotated[Path, typer.Option(help="where samples and results are kept")] = Path("evaluations"),
    rescore: Annotated[bool, typer.Option("--rescore", help="judge the kept samples again")] = False,
) -> None:
    """Evaluate a model, the checkpoints of a run, or a model against another, on a recipe's held-out sets."""
    with user_errors():
        if checkpoints is not None and (model is not None or base is not None):
            raise EvaluationError("--checkpoints takes the models of a run; leave --model and --base out.")
        loaded = load_recipe(recipe, overrides or [])

        from rlvr.evaluation import running

        if checkpoints is not None:
            running.evaluate_checkpoints(loaded, checkpoints, on.value, output, rescore)
        else:
            running.evaluate_pair(loaded, model or loaded.recipe.model.path, base, on.value, output, rescore)
