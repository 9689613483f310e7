"""`rlvr hints make`: the policy of a recipe writes the hints of its training prompts ahead of time."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

from rlvr.building import build_trainer, load_parts, trainer_arguments
from rlvr.config import load_recipe
from rlvr.errors import RecipeError
from rlvr.guidance.making import make_hints, report_table
from rlvr.guidance.stage import Guidance
from rlvr.processes import join_processes
from rlvr.progress_bars import progress_columns


def write_hints_of(recipe: Path, overrides: Sequence[str], output: Path | None, levels: int) -> Path:
    """Writes the hint file of a recipe's training prompts, whatever the recipe's own source of hints is; returns it.

    Without `output` it is the file that the recipe reads its hints from, else hints.jsonl. Raises UserError.
    """
    config = load_recipe(recipe, overrides).recipe.guidance
    if config is None or config.rule not in ("nurl", "guide", "sage"):
        raise RecipeError(f"{recipe}: guidance: no rule that takes hints; add for example `guidance: nurl`")
    output = output or Path(config.hints.file or "hints.jsonl")
    written = ["guidance.hints.source=self", "guidance.hints.file=null"]
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_recipe(recipe, [*overrides, *written, f"trainer.output_dir={scratch}", "report.to=[none]"])
        state = join_processes(trainer_arguments(loaded))
        disable_progress_bar()
        console = Console(quiet=not state.is_main_process)
        parts = load_parts(loaded, console)
        trainer = build_trainer(loaded, parts, [], record=lambda hint: None)
        assert isinstance(trainer.guidance, Guidance)
        assert trainer.guidance.hints is not None
        trainer.model.train()  # the settings of training: TRL samples by them only then
        with Progress(*progress_columns(), console=console) as bar:
            task = bar.add_task("hints", total=None, note="")
            counts = make_hints(
                trainer.guidance.hints,
                parts.train_data,
                levels,
                output,
                chunk=loaded.trainer["per_device_train_batch_size"] * state.num_processes,
                writes=state.is_main_process,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        console.print(report_table(counts, output))
    return output
