"""Samples of a model on the held-out sets of a recipe, kept on the disk; what is there is not sampled again."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, set_seed

from rewards._batch import answers_of
from rlvr.errors import EvaluationError
from rlvr.evaluation.evaluate import Sampler
from rlvr.evaluation.samples import (
    Sample,
    append_samples,
    finished_prompts,
    judged_again,
    read_samples,
    samples_of,
    stored,
    stored_columns,
    verifier_input,
)
from rlvr.evaluation.sets import SetKind
from rlvr.evaluation.standalone import Evaluation, offers_of
from rlvr.evaluation.token_entropy import EntropyReader, entropy_reader
from rlvr.progress_bars import progress_columns
from rlvr.random_numbers import own_random_numbers
from rlvr.rollout.generating import ModelSampler, mapping_of
from rlvr.rollout.rollouts import ROW_COLUMNS
from rlvr.rollout.vllm_sampling import VLLMSampler
from rlvr.rollout.vllm_settings import engine_record
from rlvr.seeds import derived_seed
from rlvr.types import Rollouts
from rlvr.verification import Verdicts, verify

SAMPLING = ("max_completion_length", "top_p", "top_k", "min_p", "repetition_penalty", "bf16", "fp16")
MAPPINGS = ("generation_kwargs", "chat_template_kwargs")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
LOADING = ("revision", "dtype", "quantization")


def settings_of(evaluation: Evaluation, model: str, which: SetKind) -> dict[str, Any]:
    """What samples depend on beside the prompts: of others none may be in the same folder."""
    recipe, trainer = evaluation.loaded.recipe, evaluation.loaded.trainer
    config = recipe.evaluation
    return {
        "model": model,
        "weights": weights_of(model),
        "kind": which,
        "num_samples": config.num_samples,
        "temperature": config.temperature,
        "temperatures": config.temperatures,
        "greedy": config.greedy,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "sets": {name: asdict_of(evaluation, name, which) for name in evaluation.sets.of(which)},
        **{name: trainer[name] for name in SAMPLING},
        **{name: mapping_of(trainer.get(name)) or None for name in MAPPINGS},
        **{name: getattr(recipe.model, name) for name in LOADING},
        **engine_record(trainer),
    }


def weights_of(model: str) -> str | None:
    """What tells a saved model from another that later has its path; None for one of the Hub, and for a built-in one.

    Names, sizes and times of change of the files of weights: to read gigabytes for each evaluation takes too long.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"files {hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def asdict_of(evaluation: Evaluation, name: str, which: SetKind) -> dict[str, Any]:
    """Where a set comes from."""
    config = evaluation.loaded.recipe.evaluation
    sources = config.sets if which == "test" else config.validation
    return sources[name].model_dump()


def sample_sets(
    evaluation: Evaluation,
    model: PreTrainedModel | VLLMSampler,
    name: str,
    which: SetKind,
    folder: Path,
    console: Console,
) -> list[Sample]:
    """The samples of every prompt of the recipe's sets of that kind, of all processes; what was missing is drawn.

    Prompts of similar length share a batch, and each batch has random numbers that its place decides, so that an
    evaluation that was interrupted goes on to the same samples. Raises EvaluationError where the folder holds others.
    """
    state = PartialState()
    settings = settings_of(evaluation, name, which)
    config = evaluation.loaded.recipe.evaluation
    with (
        own_random_numbers(),
        _drawing(evaluation, model) as drawing,
        Progress(*progress_columns(), console=console, disable=not state.is_main_process) as progress,
    ):
        for set_name, data in evaluation.sets.of(which).items():
            kept = [each for each in read_samples(folder, settings) if each.set_name == set_name]
            _check_rows(folder, kept, data)
            done = finished_prompts(kept, set_name, config.num_samples, config.greedy)
            state.wait_for_everyone()  # before anyone writes what others might take for done
            chunks = list(enumerate(_chunks(data, max(1, config.batch_size // config.num_samples))))
            mine = chunks[state.process_index :: state.num_processes]
            left = [(place, rows) for place, rows in mine if any(row["prompt_id"] not in done for row in rows)]
            bar = progress.add_task(f"{Path(name).name} {set_name}"[:24], total=len(mine), note="")
            progress.advance(bar, len(mine) - len(left))
            for place, rows in left:
                set_seed(derived_seed(config.seed, set_name, place) % 2**32)
                found = _sampled(evaluation, drawing, rows, set_name)
                append_samples(folder, found, settings, state.process_index)
                progress.advance(bar)
    state.wait_for_everyone()
    names = set(evaluation.sets.of(which))
    return _in_order([each for each in read_samples(folder, settings) if each.set_name in names])


@dataclass(frozen=True)
class _Drawing:
    """What draws samples of a model, what is offered to the rewards meanwhile, and what reads entropies of tokens."""

    sampler: Sampler
    offers: Mapping[str, Any] = field(default_factory=dict)
    entropies: EntropyReader | None = None


@contextmanager
def _drawing(evaluation: Evaluation, model: PreTrainedModel | VLLMSampler) -> Iterator[_Drawing]:
    if isinstance(model, VLLMSampler):
        yield _Drawing(model)
        return
    with offers_of(evaluation, model) as offers, entropy_reader(evaluation, model) as entropies:
        yield _Drawing(ModelSampler(model, evaluation.tokenizer, evaluation.loaded.trainer), offers, entropies)


def judge_again(evaluation: Evaluation, model: str, which: SetKind, folder: Path) -> list[Sample]:
    """The kept samples under the recipe's verifier, and the columns of the rows, as they are now.

    Nothing is sampled, and the files stay as they are. Raises EvaluationError where a prompt of the recipe's sets has
    no samples, and where they are of other prompts or models.
    """
    samples = _in_order(read_samples(folder, {"model": model, "kind": which}, are_all=False))
    if not samples:
        raise EvaluationError(f"{folder} holds no samples to judge again; evaluate without --rescore first.")
    found = []
    for name, data in evaluation.sets.of(which).items():
        mine = [each for each in samples if each.set_name == name]
        columns = {prompt_id: row[1] for prompt_id, row in _rows_of(data).items()}
        mine = [replace(each, columns=columns.get(each.prompt_id, each.columns)) for each in mine]
        _check_rows(folder, mine, data)
        num_missing = len(set(data["prompt_id"]) - {each.prompt_id for each in mine})
        if num_missing:
            raise EvaluationError(
                f"{folder} lacks samples of {num_missing} of the {len(data)} prompts of {name}; evaluate without"
                " --rescore first, which draws them."
            )
        batch = verifier_input(mine)
        verdicts = verify(evaluation.functions, evaluation.loaded.recipe.rewards, **batch)
        found += judged_again(mine, verdicts, answer_texts(batch["completions"]))
    return found


def _check_rows(folder: Path, samples: Sequence[Sample], data: Dataset) -> None:
    """Raises EvaluationError where a sample of a set in the folder is not of the set's row of that id, as it is now."""
    now = _rows_of(data)
    for each in samples:
        if now.get(each.prompt_id) != (each.prompt, each.columns):
            raise EvaluationError(
                f"{folder} has samples of prompt {each.prompt_id} of {each.set_name}, whose row is no longer in the"
                " set, or has another prompt or other columns; evaluate into another folder, or with the rows and the"
                " template of before (where only columns differ, --rescore judges by the new ones)."
            )


def _rows_of(data: Dataset) -> dict[int, tuple[str, str]]:
    """Prompt and other columns, as samples have them, by prompt."""
    return {
        row["prompt_id"]: (stored(row["prompt"]), stored_columns({n: row[n] for n in row if n not in ROW_COLUMNS}))
        for row in data
    }


def _in_order(samples: list[Sample]) -> list[Sample]:
    """By prompt, so that no interval depends on the order in which prompts were sampled."""
    return sorted(samples, key=lambda each: (each.set_name, each.prompt_id))


def answer_texts(completions: Sequence[Any]) -> list[str]:
    """The final answer of each completion: in <answer> </answer>, else in \\boxed{}; empty where there is none."""
    tagged = answers_of(completions, "tag", "answer")
    boxed = answers_of(completions, "boxed", None)
    return [first or second for first, second in zip(tagged, boxed, strict=True)]


def _chunks(data: Dataset, size: int) -> list[list[dict[str, Any]]]:
    """The rows in order of the length of their prompts, so many at a time."""
    rows = sorted(data, key=lambda row: (len(str(row["prompt"])), row["prompt_id"]))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _sampled(
    evaluation: Evaluation, drawing: _Drawing, rows: Sequence[Mapping[str, Any]], set_name: str
) -> list[Sample]:
    config = evaluation.loaded.recipe.evaluation
    temperature = config.temperatures.get(set_name, config.temperature)
    repeated = [row for row in rows for _ in range(config.num_samples)]
    draws = [(repeated, temperature), *([(rows, 0.0)] if config.greedy else [])]
    found: list[Sample] = []
    for each, heat in draws:
        rollouts = drawing.sampler(each, temperature=heat)
        found += samples_of(
            rollouts,
            _judged(evaluation, rollouts, drawing.offers),
            answer_texts(rollouts.completions),
            set_name=set_name,
            temperature=heat,
            seed=config.seed,
            # A greedy completion has no temperature at which its distribution could be asked for.
            token_entropies=None if drawing.entropies is None or heat == 0.0 else drawing.entropies(rollouts, heat),
        )
    return found


def _judged(evaluation: Evaluation, rollouts: Rollouts, offers: Mapping[str, Any]) -> Verdicts:
    return verify(
        evaluation.functions,
        evaluation.loaded.recipe.rewards,
        prompts=rollouts.prompts,
        completions=rollouts.completions,
        completion_ids=rollouts.completion_ids,
        columns=rollouts.columns,
        prompt_ids=rollouts.group_ids,
        **offers,
    )
