"""The search for alpha on models and files; what is decided there is decided in `search`."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rlvr.config import load_recipe, resolved_yaml
from rlvr.errors import ExtrapolationError, RecipeError
from rlvr.evaluation.sets import SetKind
from rlvr.evaluation.standalone import Evaluation, evaluate_records, load_evaluation
from rlvr.extrapolation import search
from rlvr.extrapolation.output_folder import kept_folder
from rlvr.extrapolation.provenance import provenance_of, write_json
from rlvr.extrapolation.rules import Treatment, treatments
from rlvr.extrapolation.running import DTYPES, Options, compute, open_sources, values_progress
from rlvr.extrapolation.search_cache import Records, claim, keep_records, kept_records
from rlvr.extrapolation.search_report import draw, facts_of, table_of_alphas, table_of_test
from rlvr.extrapolation.sources import Sources
from rlvr.extrapolation.writing import Job, write_checkpoint
from rlvr.model import load_policy

SCRATCH = ".alpha-"
MODEL, PROVENANCE = "model", "provenance.json"


@dataclass(frozen=True)
class Plan:
    """By what the alphas are compared, and which are tried."""

    metric: str
    grid: tuple[float, ...] | None  # None: an adaptive search
    max_evaluations: int  # of an adaptive search, those of earlier calls included

    def next_alpha(self, scored: Mapping[float, search.Scores], seed: int) -> float | None:
        """None when the search is over."""
        if self.grid is None:
            return search.next_adaptive(scored, self.max_evaluations, seed)
        return search.next_of_grid(self.grid, scored)

    def size(self, scored: Mapping[float, search.Scores]) -> str:
        """How many alphas there will be in all, those of earlier calls included."""
        if self.grid is None:
            return f"at most {self.max_evaluations}"
        return f"{len({search.TUNED, *self.grid, *scored})}"


@dataclass(frozen=True)
class Subject:
    """The line of models that is searched, and what they are evaluated by."""

    sources: Sources
    treatments: Mapping[str, Treatment]
    evaluation: Evaluation
    options: Options
    console: Console

    @property
    def folder(self) -> Path:
        return self.options.out


def run_search(base: Path, tuned: Path, recipe: Path, overrides: Sequence[str], plan: Plan, options: Options) -> None:
    """Evaluates alphas on the recipe's validation sets, writes the best model, and then evaluates the test sets.

    In `options.out` are left: the records of all prompts by alpha (`validation/`, `test/`), `search.json`, `search.png`
    and the best model (`model/`). A call into the same folder takes what is there as evaluated. One process.

    Raises UserError for a recipe without validation sets, for checkpoints that do not fit, and for a folder that holds
    something else.
    """
    loaded = load_recipe(recipe, overrides)
    config = loaded.recipe.evaluation
    if not config.validation:
        raise RecipeError(
            f"{recipe}: evaluation.validation names no set, and alpha is never chosen by the test sets in"
            " evaluation.sets; add one with other prompts, such as `validation: {NAME: {dataset: ...}}`"
        )
    search.check_metric(plan.metric, config)
    sources = open_sources([base, tuned], options)
    chosen = treatments(sources.tuned, options.rules())
    disable_progress_bar()  # transformers draws one per weight file, across our own
    subject = Subject(sources, chosen, load_evaluation(loaded), options, Console())
    with kept_folder(options.out):
        claim(options.out, _settings(subject))
        for left in options.out.glob(f"{SCRATCH}*"):  # of a killed process, as the folder is locked
            shutil.rmtree(left)
        found = _search(subject, plan)
        _write_best(subject, plan, found)
        _evaluate_tests(subject, found.best)
        _report(subject, plan, found)


def _settings(subject: Subject) -> dict[str, Any]:
    """What decides the numbers, and may not change from one call to the next."""
    options = subject.options
    facts = provenance_of(subject.sources, subject.treatments, {})
    return {
        "checkpoints": facts["sources"],
        "rules": facts["groups"],
        "dtype": options.dtype,
        "settings in the recipe": resolved_yaml(subject.evaluation.loaded),
    }


def _search(subject: Subject, plan: Plan) -> search.Findings:
    seed = subject.evaluation.loaded.recipe.evaluation.seed
    scored = {
        alpha: search.scores_of(records, plan.metric)
        for alpha, records in kept_records(subject.folder, "validation").items()
    }
    if scored:
        known = ", ".join(f"{alpha:g}" for alpha in scored)
        subject.console.print(f"evaluated before: alpha = {known}", markup=False, highlight=False)
    while (alpha := plan.next_alpha(scored, seed)) is not None:
        records = _evaluated(subject, alpha, "validation", f"({len(scored) + 1} of {plan.size(scored)})")
        scored[alpha] = search.scores_of(records, plan.metric)
    return search.findings(scored, seed)


def _evaluated(subject: Subject, alpha: float, which: SetKind, note: str) -> Records:
    """The records of the model at this alpha, which are kept on the disk as well."""
    with tempfile.TemporaryDirectory(dir=subject.folder, prefix=SCRATCH) as scratch:
        model = _model_at(subject, alpha, Path(scratch).absolute() / MODEL)
        _check_logits(model, subject.evaluation.tokenizer.eos_token_id, alpha)
        records = evaluate_records(subject.evaluation, model, which, subject.console, f"alpha {alpha:g} {note}")
    keep_records(subject.folder, which, alpha, records)
    return records


def _model_at(subject: Subject, alpha: float, path: Path) -> PreTrainedModel:
    """The model as the writer writes it, so that what is evaluated is what will be used, rounding included."""
    options, console = subject.options, subject.console
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    job = Job("extrapolate", {"alpha": alpha}, subject.sources, subject.treatments, dtype, options.adapter_base)
    with values_progress(console) as progress:
        bar = progress.add_task(f"alpha {alpha:g}", total=sum(each.numel for each in subject.sources.infos.values()))
        max_shard_bytes = int(options.max_shard_gb * 1e9)
        write_checkpoint(job, path, max_shard_bytes, {}, lambda done: progress.advance(bar, done), console.print)
    if not (path / "config.json").is_file():
        raise ExtrapolationError(
            f"{subject.sources.tuned.path} has no config.json, without which the model cannot be evaluated; give the"
            " folder of a saved model."
        )
    model = load_policy(subject.evaluation.loaded.recipe.model.model_copy(update={"path": str(path), "revision": None}))
    return model.to(PartialState().device)


@torch.no_grad()
def _check_logits(model: PreTrainedModel, token: int, alpha: float) -> None:
    """Raises ExtrapolationError where finite weights give logits that are not: from those nothing can be sampled."""
    logits = model(input_ids=torch.tensor([[token]], device=model.device)).logits
    if not bool(torch.isfinite(logits).all()):
        raise ExtrapolationError(
            f"At alpha = {alpha:g} the logits of the model are NaN or infinite; leave such alphas out of --alpha-grid,"
            " or with --adaptive give the number evaluated so far as --max-evaluations."
        )


def _write_best(subject: Subject, plan: Plan, found: search.Findings) -> None:
    """Writes `model/`, in place of that of an earlier call which found another alpha best."""
    folder = subject.folder / MODEL
    if folder.exists():
        there = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["settings"]["alpha"]
        if there == found.best:
            return
        subject.console.print(f"{folder} of alpha = {there:g} gives way to alpha = {found.best:g}", markup=False)
        shutil.rmtree(folder)
    evaluation = subject.evaluation.loaded.recipe.evaluation
    notes = {
        "search": {
            "metric": plan.metric,
            "adaptive": plan.grid is None,
            "validation": {name: source.dataset for name, source in evaluation.validation.items()},
            "means": {f"{alpha!r}": mean.value for alpha, mean in found.means.items()},
            "verdict": search.verdict(found, plan.metric),
        }
    }
    options = replace(subject.options, out=folder)
    compute("extrapolate", {"alpha": found.best}, subject.sources, subject.treatments, options, notes)


def _evaluate_tests(subject: Subject, best: float) -> None:
    """At alpha = 1 and the best alone, after the latter is chosen."""
    if not subject.evaluation.sets.test:
        return
    kept = kept_records(subject.folder, "test")
    for alpha in sorted({search.TUNED, best} - kept.keys()):
        _evaluated(subject, alpha, "test", "test")


def _report(subject: Subject, plan: Plan, found: search.Findings) -> None:
    folder, console = subject.folder, subject.console
    config = subject.evaluation.loaded.recipe.evaluation
    kept = kept_records(folder, "test")
    test = {alpha: kept[alpha] for alpha in sorted({search.TUNED, found.best}) if alpha in kept}
    validation = kept_records(folder, "validation")
    write_json(folder / "search.json", facts_of(found, plan.metric, validation, test, config))
    draw(found, plan.metric, folder / "search.png")
    console.print(table_of_alphas(found, plan.metric))
    if test:
        console.print(table_of_test(test, found.best, plan.metric, config))
    for sentence in search.verdict(found, plan.metric):
        console.print(sentence, markup=False, highlight=False)
    lines = (("model", MODEL), ("picture", "search.png"), ("numbers", "search.json"))
    for name, file in lines:
        console.print(f"{name:8} {folder / file}", markup=False, highlight=False, soft_wrap=True)
