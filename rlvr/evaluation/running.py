"""What `rlvr eval` does once its options are known, and what it shows."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from rlvr.building import read_dataset
from rlvr.checkpointing import folders
from rlvr.config import LoadedRecipe
from rlvr.errors import EvaluationError, RecipeError
from rlvr.evaluation.beyond import Beyond, beyond_base
from rlvr.evaluation.contamination import Contamination, contamination
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.pictures import draw_by_step, draw_pass_at_k
from rlvr.evaluation.policies import policy_of
from rlvr.evaluation.sampled import judge_again, sample_sets
from rlvr.evaluation.samples import Sample
from rlvr.evaluation.sets import SetKind
from rlvr.evaluation.standalone import Evaluation, load_evaluation
from rlvr.evaluation.summary import sample_estimates
from rlvr.files import write_whole

RESULTS = "results.json"
CURVES, BY_STEP = "pass_at_k.png", "by_step.png"
Estimates = dict[str, dict[str, Estimate]]  # by set and metric


def evaluate_pair(
    loaded: LoadedRecipe, model: str, base: str | None, which: SetKind, output: Path, rescore: bool
) -> None:
    """Evaluates a model and, with `base`, compares it with that one; prints tables and writes `results.json`."""
    evaluation, console = _prepared(loaded, which)
    samples = _samples(evaluation, model, which, output, console, rescore)
    found: dict[str, Any] = {model: _estimates(evaluation, samples)}
    comparisons: dict[str, Beyond] = {}
    if base is not None:
        theirs = _samples(evaluation, base, which, output, console, rescore)
        found = {base: _estimates(evaluation, theirs), **found}
        seed = loaded.recipe.evaluation.seed
        comparisons = {
            name: beyond_base(_of(theirs, name), _of(samples, name), seed=seed) for name in evaluation.sets.of(which)
        }
    overlaps = {name: _contamination(evaluation, name, which) for name in evaluation.sets.of(which)}
    if PartialState().is_main_process:
        for name in evaluation.sets.of(which):
            console.print(_table(name, {label: each[name] for label, each in found.items()}))
            if name in comparisons:
                _say(console, comparisons[name])
                console.print(_difficulty(name, comparisons[name]))
            _warn(console, name, overlaps[name])
        content = {"kind": which, "models": found, "comparisons": comparisons, "contamination": overlaps}
        _write(content, output, console)
        if draw_pass_at_k(found, output / CURVES):
            console.print(f"curves          {output / CURVES}", soft_wrap=True)


def evaluate_checkpoints(loaded: LoadedRecipe, run_dir: Path, which: SetKind, output: Path, rescore: bool) -> None:
    """Evaluates every whole checkpoint of a run; prints a table by step and writes `results.json`.

    Raises EvaluationError where there is none.
    """
    steps = folders.steps_of(run_dir) if run_dir.is_dir() else []
    paths = [run_dir / folders.name_of(step) for step in steps]
    whole = [path for path in paths if folders.flaw_of(path) is None]
    if not whole:
        raise EvaluationError(f"{run_dir} has no checkpoint that is whole; give the directory of a run with some.")
    evaluation, console = _prepared(loaded, which)
    found = {}
    for path in whole:
        samples = _samples(evaluation, str(path), which, output, console, rescore)
        found[path.name] = _estimates(evaluation, samples)
    if PartialState().is_main_process:
        for name in evaluation.sets.of(which):
            console.print(_table(name, {label: each[name] for label, each in found.items()}))
        content = {"kind": which, "models": found}
        _write(content, output, console)
        if draw_by_step(found, [folders.step_of(path) for path in whole], output / BY_STEP):
            console.print(f"curve           {output / BY_STEP}", soft_wrap=True)


def _write(content: Mapping[str, Any], output: Path, console: Console) -> None:
    write_whole(output / RESULTS, json.dumps(_plain(content), indent=1) + "\n")
    console.print(f"results         {output / RESULTS}", soft_wrap=True)


def _prepared(loaded: LoadedRecipe, which: SetKind) -> tuple[Evaluation, Console]:
    evaluation = load_evaluation(loaded)
    disable_progress_bar()  # transformers draws one per weight file, across our own
    sets = evaluation.sets.of(which)
    if not sets:
        key = "evaluation.sets" if which == "test" else "evaluation.validation"
        raise RecipeError(f"{loaded.path}: {key} names no set; add one, such as `{key}: {{NAME: {{dataset: ...}}}}`")
    for name, data in sets.items():
        if len(data) == 0:
            raise EvaluationError(f"The evaluation set {name} has no prompts; give it some, or remove it.")
    return evaluation, Console(quiet=not PartialState().is_main_process)


def _samples(
    evaluation: Evaluation, model: str, which: SetKind, output: Path, console: Console, rescore: bool
) -> list[Sample]:
    folder = output / "samples" / folder_name(model) / which
    if rescore:
        return judge_again(evaluation, model, which, folder)
    with policy_of(evaluation, model) as policy:
        return sample_sets(evaluation, policy, model, which, folder, console)


def folder_name(model: str) -> str:
    """A name for the samples of a model, readable and without separators."""
    return re.sub(r"[^\w.-]+", "_", model).strip("_")


def _estimates(evaluation: Evaluation, samples: Sequence[Sample]) -> Estimates:
    config = evaluation.loaded.recipe.evaluation
    names = sorted({each.set_name for each in samples})
    votes = sorted({k for k in (*config.k, config.num_samples) if k > 1})
    return {
        name: sample_estimates(_of(samples, name), k=config.k, majority_k=votes, seed=config.seed) for name in names
    }


def _of(samples: Sequence[Sample], name: str) -> list[Sample]:
    return [each for each in samples if each.set_name == name]


def _contamination(evaluation: Evaluation, name: str, which: SetKind) -> Contamination:
    loaded = evaluation.loaded
    training = read_dataset(loaded, loaded.recipe.data.train, evaluation.tokenizer, "data.train")
    return contamination(_texts(evaluation.sets.of(which)[name]["prompt"]), _texts(training["prompt"]))


def _texts(prompts: Sequence[Any]) -> list[str]:
    return [each if isinstance(each, str) else "\n".join(turn["content"] for turn in each) for each in prompts]


# ---- what a person sees ----------------------------------------------------------------------------------------------


def _table(name: str, models: Mapping[str, Mapping[str, Estimate]]) -> Table:
    metrics = list(dict.fromkeys(metric for each in models.values() for metric in each))
    table = Table(title=f"{escape(name)}, mean over prompts [95% bootstrap interval]")
    table.add_column("metric", no_wrap=True)
    for label in models:
        table.add_column(escape(label[-28:]), justify="right")
    for metric in metrics:
        cells = [_cell(each[metric]) if metric in each else "none scored" for each in models.values()]
        table.add_row(metric, *cells)
    return table


def _cell(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _say(console: Console, found: Beyond) -> None:
    difference = found.pass_at_1.difference
    console.print(
        f"pass@1 against the base: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}],"
        f" p = {found.pass_at_1.p_value:.2g}, on {found.num_prompts} prompts"
        + (f"; {found.num_unscored} prompts without all verdicts left out" if found.num_unscored else ""),
        soft_wrap=True,
    )
    console.print(found.verdict, soft_wrap=True, markup=False)
    metrics = found.metrics
    console.print(
        f"support at {found.num_compared} samples: SRR {_cell(metrics.srr)}, NDR {_cell(metrics.ndr)}, SDS"
        f" {_cell(metrics.sds)}, NSCR {_cell(metrics.nscr)}",
        soft_wrap=True,
    )


def _difficulty(name: str, found: Beyond) -> Table:
    """Where the gain comes from; see `difficulty_table`."""
    table = Table(title=f"{escape(name)}, pass@1 by how often the base model is right [95% bootstrap interval]")
    table.add_column("base model", no_wrap=True)
    for heading in ("prompts", "base", "tuned", "difference"):
        table.add_column(heading, justify="right")
    for row in found.difficulty:
        change = f"{row.difference.value:+.3f} [{row.difference.low:+.3f}, {row.difference.high:+.3f}]"
        table.add_row(row.label, str(row.num_prompts), _cell(row.base), _cell(row.tuned), change)
    return table


def _warn(console: Console, name: str, found: Contamination) -> None:
    if found.num_overlapping:
        console.print(
            f"{found.num_overlapping} of {found.num_prompts} prompts of {name} overlap with training prompts"
            f" ({found.num_equal} are equal to one): what they show may have been learned by heart",
            soft_wrap=True,
            markup=False,
        )


def _plain(value: Any) -> Any:
    """Without records and numbers that strict JSON does not know: these become their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return value.item() if hasattr(value, "item") else value
