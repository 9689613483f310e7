"""`rlvr extrapolate logits`: decoding with the logits of two models. Heavy imports happen inside the commands."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlvr.command_errors import user_errors
from rlvr.config import load_recipe
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.options import check_number

logits_app = typer.Typer(no_args_is_help=True, help="Decode with the logits A + alpha (B - A) of two models.")

MAX_NEW_TOKENS, TEMPERATURE, TOP_P, SEED = 256, 1.0, 1.0, 42


class Kind(StrEnum):
    """Of held-out sets."""

    TEST = "test"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Asked:
    """The options before the name of the command; they are checked by it, so that its --help needs none of them."""

    base: str | None
    tuned: str | None
    alpha: float | None

    def pair(self) -> tuple[str, str, float]:
        if not self.base or not self.tuned or self.alpha is None:
            raise ExtrapolationError(
                "Which logits is not clear; write logits --base A --tuned B --alpha X before the command."
            )
        check_number("--alpha", self.alpha)
        return self.base, self.tuned, self.alpha


@logits_app.callback()
def logits(
    context: typer.Context,
    base: Annotated[str | None, typer.Option(help="the model where alpha is 0: a folder, Hub id or built-in")] = None,
    tuned: Annotated[str | None, typer.Option(help="the model where alpha is 1, or an adapter of --base")] = None,
    alpha: Annotated[float | None, typer.Option(help="how far to go, in distances from base to tuned")] = None,
) -> None:
    """Decode with the logits A + alpha (B - A) of two models."""
    context.obj = Asked(base, tuned, alpha)


@logits_app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[list[str] | None, typer.Option(help="a prompt; may be given several times")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="a .jsonl, .json, .csv or .parquet file with a column `prompt`")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="the longest completion")] = MAX_NEW_TOKENS,
    temperature: Annotated[float, typer.Option(help="divides the extrapolated logits; 0 is greedy")] = TEMPERATURE,
    top_p: Annotated[float, typer.Option(help="sample among the likeliest tokens of this total")] = TOP_P,
    seed: Annotated[int, typer.Option(help="of the random numbers")] = SEED,
    no_chat: Annotated[
        bool, typer.Option("--no-chat", help="take prompts as they are, though the tokenizer has a chat template")
    ] = False,
) -> None:
    """Print a completion of each prompt."""
    with user_errors():
        pair = _of(context).pair()

        from rlvr.extrapolation import logits_running

        sampling = logits_running.Sampling(max_new_tokens, temperature, top_p, seed, not no_chat)
        logits_running.run_generate(*pair, prompt or [], prompts, sampling)


@logits_app.command("eval")
def evaluate(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="a recipe file; its model gives the tokenizer and how to load")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as evaluation.num_samples=32")] = None,
    on: Annotated[Kind, typer.Option(help="which held-out sets; choose alpha on validation only")] = Kind.TEST,
    output: Annotated[Path | None, typer.Option(help="a .json file for the results")] = None,
) -> None:
    """Evaluate on the held-out sets of a recipe, as `rlvr train` does before and after."""
    with user_errors():
        pair = _of(context).pair()
        loaded = load_recipe(recipe, overrides or [])

        from rlvr.extrapolation import logits_running

        logits_running.run_eval(*pair, loaded, on.value, output)


def _of(context: typer.Context) -> Asked:
    assert isinstance(context.obj, Asked)
    return context.obj
