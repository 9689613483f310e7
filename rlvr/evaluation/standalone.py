"""Evaluation of a model without a trainer, by the recipe of a run: the numbers are those that the run would have."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlvr.building import load_functions, trainer_arguments
from rlvr.config import LoadedRecipe
from rlvr.errors import RecipeError
from rlvr.evaluation.evaluate import EvaluationResult, summarise
from rlvr.evaluation.passes import evaluate_sets
from rlvr.evaluation.records import PromptRecord
from rlvr.evaluation.sets import EvaluationSets, SetKind, load_sets, prompt_keys
from rlvr.frozen import FrozenPass
from rlvr.model import load_tokenizer
from rlvr.policy import attach_token_stats
from rlvr.policy_scorer import PolicyScorer, scorer_offer
from rlvr.processes import join_processes
from rlvr.rollout.generating import ModelSampler, mixed_precision
from rlvr.verification import RewardFunction, takes


@dataclass(frozen=True)
class Evaluation:
    """What models of one recipe are evaluated by; loaded once for any number of them."""

    loaded: LoadedRecipe
    tokenizer: PreTrainedTokenizerBase
    functions: list[RewardFunction]
    sets: EvaluationSets


def load_evaluation(loaded: LoadedRecipe) -> Evaluation:
    """The tokenizer of the recipe's model, its reward functions and its held-out sets. Raises UserError for each."""
    join_processes(trainer_arguments(loaded))
    tokenizer = load_tokenizer(loaded.recipe.model)
    return Evaluation(loaded, tokenizer, load_functions(loaded), load_sets(loaded, tokenizer))


def evaluate_model(
    loaded: LoadedRecipe, model: PreTrainedModel, which: SetKind, console: Console
) -> list[EvaluationResult]:
    """The results of the recipe's test or validation sets, as `evaluations/before.json` of a run would have them.

    `model` is anything with `generate`; see `ModelSampler` for how it is sampled. One process gives the numbers of a
    run in one process. Raises UserError for what the recipe names and is not in order, and where it has no such sets.
    """
    evaluation = load_evaluation(loaded)
    records = evaluate_records(evaluation, model, which, console)
    return [
        summarise(name, records[name], loaded.recipe.evaluation, which, prompt_keys(data))
        for name, data in evaluation.sets.of(which).items()
    ]


def evaluate_records(
    evaluation: Evaluation, model: PreTrainedModel, which: SetKind, console: Console, label: str = "evaluate"
) -> dict[str, list[PromptRecord]]:
    """What the samples of every prompt amount to, by set; models of one recipe are sampled with the same seeds.

    `label` opens the name of the progress bar. Raises RecipeError where the recipe has no sets of that kind.
    """
    loaded, sets = evaluation.loaded, evaluation.sets.of(which)
    if not sets:
        key = "evaluation.sets" if which == "test" else "evaluation.validation"
        raise RecipeError(f"{loaded.path}: {key} names no set; add one, such as `{key}: {{NAME: {{dataset: ...}}}}`")
    with offers_of(evaluation, model) as offers:
        return evaluate_sets(
            sets,
            ModelSampler(model, evaluation.tokenizer, loaded.trainer),
            evaluation.functions,
            loaded.recipe.rewards,
            loaded.recipe.evaluation,
            offers=offers,
            label=lambda name: f"{label} {name}",
            console=console,
        )


@dataclass(frozen=True)
class PlainProcesses:
    """Stands in for an accelerator, of which a process has but one precision: each process has all of the model."""

    device: torch.device
    settings: Mapping[str, Any]

    def autocast(self) -> AbstractContextManager[Any]:
        return mixed_precision(self.settings, self.device)

    def gather(self, tensor: Any) -> Any:
        """This process's alone: no pass waits for others, which may have fewer completions to judge."""
        return tensor

    def unwrap_model(self, model: Any) -> Any:
        return model


@contextmanager
def offers_of(evaluation: Evaluation, model: PreTrainedModel) -> Iterator[Mapping[str, Any]]:
    """The model as `scorer` where a reward function takes one; its `forward` is as before afterwards."""
    if not any(takes(each.function, "scorer") for each in evaluation.functions):
        yield {}
        return
    scorer = PolicyScorer(lambda: model, evaluation.tokenizer, frozen_pass(evaluation, model))
    with token_stats_of(model):
        yield scorer_offer(evaluation.functions, scorer)


def frozen_pass(evaluation: Evaluation, model: PreTrainedModel) -> FrozenPass:
    """Reads texts under a model as the recipe's run would."""
    settings = evaluation.loaded.trainer
    return FrozenPass(
        PlainProcesses(model.device, settings),
        settings["per_device_train_batch_size"],
        evaluation.tokenizer.pad_token_id,
        settings["temperature"],
    )


@contextmanager
def token_stats_of(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model answers `token_query`; its `forward` is as before afterwards."""
    modules = [each for each in (model, model.get_output_embeddings()) if each is not None]
    forwards = [each.forward for each in modules]
    attach_token_stats(model)
    try:
        yield
    finally:
        for each, forward in zip(modules, forwards, strict=True):
            each.forward = forward
