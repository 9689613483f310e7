"""The `rlvr` command. Heavy imports happen inside the commands, after the recipe is validated."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlvr.command_errors import user_errors
from rlvr.config import PRESETS, load_recipe, resolved_yaml
from rlvr.config.extrapolation import explained_extrapolation
from rlvr.config.problems import nearest
from rlvr.errors import RecipeError, UserError
from rlvr.evaluation.command import evaluate
from rlvr.extrapolation.commands import extrapolate_app
from rlvr.extrapolation.linearity_command import linearity
from rlvr.reporting.report.command import report
from rlvr.scaling.command import doctor

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="RLVR post-training."
)
recipes_app = typer.Typer(no_args_is_help=True, help="Look at recipes without running them.")
rewards_app = typer.Typer(no_args_is_help=True, help="Look at reward functions.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(rewards_app, name="rewards")
hints_app = typer.Typer(no_args_is_help=True, help="Write hints ahead of training.")
app.add_typer(hints_app, name="hints")
app.add_typer(extrapolate_app, name="extrapolate")
app.command("linearity")(linearity)
app.command("eval")(evaluate)
app.command("doctor")(doctor)
app.command("report")(report)

RecipeArgument = Annotated[Path, typer.Argument(help="a recipe file, such as recipes/quickstart.yaml")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="key=value, such as trainer.max_steps=100")]

RewardArgument = Annotated[str, typer.Argument(help="a name, package.module:function or ./file.py:function")]
ArgsOption = Annotated[str, typer.Option("--args", help="its arguments as in a recipe, such as '{tag: null}'")]


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in its output directory")] = False,
    other_versions: Annotated[
        bool, typer.Option("--other-versions", help="resume although torch, TRL or another package has changed")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")] = False,
) -> None:
    """Train a policy as the recipe says."""
    with user_errors():
        loaded = load_recipe(recipe, overrides or [])
        if dry_run:
            typer.echo(resolved_yaml(loaded), nl=False)
            return
        from rlvr.run import run_recipe

        run_recipe(loaded, resume, other_versions)


@recipes_app.command()
def validate(
    paths: Annotated[list[Path] | None, typer.Argument(help="files or folders; default: recipes/")] = None,
) -> None:
    """Check recipes without importing anything heavy; every broken one is named."""
    broken = 0
    files = [file for path in paths or [Path("recipes")] for file in _recipe_files(path)]
    for file in files:
        try:
            load_recipe(file)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            broken += 1
        else:
            typer.echo(f"ok     {file}")
    if not files:
        typer.echo("error: no recipe found; name a .yaml file or a folder that holds some", err=True)
    if broken or not files:
        raise typer.Exit(2)


@recipes_app.command()
def explain(preset: Annotated[str, typer.Argument(help="a preset, such as dapo, or extrapolation")]) -> None:
    """Print the switches that a preset sets, its paper, and where it departs from the authors."""
    with user_errors():
        if preset == "extrapolation":
            typer.echo(explained_extrapolation())
            return
        if preset not in PRESETS:
            raise RecipeError(f"unknown preset {preset!r}; {nearest(preset, PRESETS, 'presets are')}")
        switches, plain = asdict(PRESETS[preset]), asdict(PRESETS["grpo"])
        typer.echo(f"{preset}: {switches.pop('paper')}\n{switches.pop('note')}\n")
        regularizers = switches.pop("regularizers")
        for name, value in switches.items():
            mark = "" if value == plain[name] else f"   (grpo: {plain[name]})"
            typer.echo(f"  {name:16} {value}{mark}")
        for name, settings in regularizers.items():
            typer.echo(f"  regularizers.{name}: {', '.join(f'{key} {value}' for key, value in settings.items())}")


def _recipe_files(path: Path) -> list[Path]:
    """The recipes at or below a path; `accelerate/` and `cluster/` say how to launch one and hold none."""
    if not path.is_dir():
        return [path]
    launching = {"accelerate", "cluster"}
    return sorted(f for f in path.rglob("*.yaml") if launching.isdisjoint((path.name, *f.relative_to(path).parts)))


@rewards_app.command("list")
def list_rewards() -> None:
    """Name the registered reward functions and what they do."""
    from rlvr.verification.loading import describe_rewards

    with user_errors():
        for name, line in describe_rewards().items():
            typer.echo(f"{name:16} {line}")


@rewards_app.command("check")
def check_a_reward(
    name: RewardArgument,
    args: ArgsOption = "{}",
    row: Annotated[
        Path | None, typer.Option(help="a .jsonl file; its rows have the columns, perhaps a right `completion`")
    ] = None,
) -> None:
    """Try a reward function on right, empty, huge and hostile text."""
    from rlvr.verification.checking import check_reward, parse_args, table_of

    with user_errors():
        checks = check_reward(name, parse_args(args), row, Path())
        Console().print(table_of(name, checks))
        if any(each.passed is False for each in checks):
            raise typer.Exit(1)


@rewards_app.command("score")
def score_completions(
    name: RewardArgument,
    file: Annotated[Path, typer.Argument(help="a .jsonl file: `completion` and the columns that the reward takes")],
    args: ArgsOption = "{}",
    output: Annotated[Path, typer.Option(help="where the verdicts go")] = Path("verdicts.parquet"),
    workers: Annotated[int | None, typer.Option(min=0, help="processes; 0 judges in this one")] = None,
) -> None:
    """Judge the completions of a file and keep the verdicts."""
    from rich.progress import Progress

    from rlvr.progress_bars import progress_columns
    from rlvr.verification.checking import parse_args
    from rlvr.verification.scoring import score_file, summary_table, write_verdicts

    with user_errors():
        started = time.perf_counter()
        with Progress(*progress_columns()) as bar:
            task = bar.add_task("score", total=None, note="")

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            scores = score_file(name, parse_args(args), file, workers, Path(), advance)
        write_verdicts(scores, output)
        Console().print(summary_table(name, scores.answers, time.perf_counter() - started))
        typer.echo(f"verdicts  {output}")


@hints_app.command("make")
def make(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    output: Annotated[Path | None, typer.Option(help="default: the recipe's hint file, else hints.jsonl")] = None,
    levels: Annotated[int, typer.Option(min=1, max=3, help="hints per prompt, from little to much help")] = 1,
) -> None:
    """Let the policy write hints for all training prompts; interrupted, the same command goes on."""
    with user_errors():
        from rlvr.hinting import write_hints_of

        write_hints_of(recipe, overrides or [], output, levels)


if __name__ == "__main__":
    app()
