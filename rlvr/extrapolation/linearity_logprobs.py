"""How the log-probabilities of fixed completions moved: sampled once from the base policy, read at every checkpoint."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlvr.batching import collate
from rlvr.config import LoadedRecipe
from rlvr.data import build_dataset, load_rows, token_ids
from rlvr.errors import ExtrapolationError
from rlvr.extrapolation.view import WeightView
from rlvr.frozen import UNUSED
from rlvr.model import load_policy, load_tokenizer
from rlvr.ops.token_stats import LOGPROBS
from rlvr.policy import attach_token_stats, read_completions
from rlvr.seeds import derived_seed
from rlvr.types import TrainRow

TOKENS_AT_ONCE = 1 << 14  # of prompts and completions, padding included, in a forward pass
TEMPERATURE = 1.0  # of the log-probabilities, whatever the completions were sampled at
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")


@dataclass(frozen=True)
class Completion:
    """One that the base policy sampled, up to and including its end."""

    source: str  # such as evaluation.sets.heldout
    prompt_id: int
    context_ids: list[int]
    completion_ids: list[int]
    text: str


@dataclass(frozen=True)
class Prompt:
    """What completions are sampled for."""

    source: str
    prompt_id: int
    context_ids: list[int]


@dataclass(frozen=True)
class CompletionPlan:
    """Which completions, decided before any is sampled; `settings` is all that decides them."""

    prompts: tuple[Prompt, ...]
    samples: int  # per prompt
    sampling: Mapping[str, Any]
    batch_size: int
    seed: int
    settings: Mapping[str, Any]


def base_tokenizer(loaded: LoadedRecipe, base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(loaded.recipe.model.model_copy(update={"path": str(base), "revision": None}))


def base_policy(loaded: LoadedRecipe, base: Path) -> PreTrainedModel:
    """On the accelerator if there is one; in float32 unless the recipe names a dtype."""
    config = loaded.recipe.model
    dtype = "float32" if config.dtype == "auto" else config.dtype
    model = load_policy(config.model_copy(update={"path": str(base), "revision": None, "dtype": dtype}))
    attach_token_stats(model)
    return model.eval().to(torch.accelerator.current_accelerator() or torch.device("cpu"))


# ---- the completions -------------------------------------------------------------------------------------------------


def plan_completions(
    loaded: LoadedRecipe, tokenizer: PreTrainedTokenizerBase, num_prompts: int, samples: int, seed: int
) -> CompletionPlan:
    """Prompts of all evaluation sets together, or without one of the training data, drawn if there are more.

    Raises DataError where they cannot be read.
    """
    recipe = loaded.recipe
    sources = {f"evaluation.sets.{name}": source for name, source in recipe.evaluation.sets.items()}
    template_options = loaded.trainer.get("chat_template_kwargs") or {}
    if isinstance(template_options, str):
        template_options = json.loads(template_options)
    found: list[Prompt] = []
    for where, source in (sources or {"data.train": recipe.data.train}).items():
        rows = load_rows(source, loaded.base_dir, where)
        data = build_dataset(rows, recipe.data, tokenizer, f"{where}: {source.dataset}")
        contexts = token_ids(data["prompt"], tokenizer, template_options)
        found += [Prompt(where, number, list(ids)) for number, ids in zip(data["prompt_id"], contexts, strict=True)]
    if num_prompts < len(found):
        generator = np.random.default_rng(derived_seed(seed, "linearity", "prompts"))
        found = [found[place] for place in sorted(generator.choice(len(found), num_prompts, replace=False))]
    sampling = {key: loaded.trainer[key] for key in SAMPLING_KEYS}
    settings = {
        "model": recipe.model.model_dump(),
        "sampling": sampling,
        "samples": samples,
        "batch_size": recipe.evaluation.batch_size,
        "seed": seed,
        "prompts": [asdict(prompt) for prompt in found],
    }
    return CompletionPlan(tuple(found), samples, sampling, recipe.evaluation.batch_size, seed, settings)


def kept_completions(path: Path, plan: CompletionPlan) -> list[Completion] | None:
    """Those in a file of an earlier measurement; None where there is none, or it was made by another plan."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] != json.loads(json.dumps(plan.settings)):
            return None
        return [Completion(**each) for each in content["completions"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ExtrapolationError(f"{path} does not hold completions; remove it, or choose another --out.") from error


def write_completions(path: Path, plan: CompletionPlan, completions: Sequence[Completion]) -> None:
    content = {"settings": plan.settings, "completions": [asdict(each) for each in completions]}
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: CompletionPlan,
    advance: Callable[[int], None],
) -> list[Completion]:
    """`samples` of each prompt under the run's own sampling settings; the random numbers are the plan's own.

    `advance` is told the completions done.
    """
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=plan.sampling["max_completion_length"],
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **{key: value for key, value in plan.sampling.items() if key != "max_completion_length"},
    )
    generate: Any = model.generate  # which has no type that a checker could follow
    wanted = [prompt for prompt in plan.prompts for _ in range(plan.samples)]
    found: list[Completion] = []
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(plan.seed, "linearity", "completions"))
        for first in range(0, len(wanted), plan.batch_size):
            chunk = wanted[first : first + plan.batch_size]
            batch = tokenizer.pad({"input_ids": [each.context_ids for each in chunk]}, return_tensors="pt")
            output = generate(**batch.to(model.device), generation_config=config)
            for prompt, row in zip(chunk, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                ids = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
                text = str(tokenizer.decode(ids, skip_special_tokens=True))
                found.append(Completion(prompt.source, prompt.prompt_id, prompt.context_ids, ids, text))
            advance(len(chunk))
    return found


# ---- their log-probabilities -----------------------------------------------------------------------------------------


def load_weights(model: PreTrainedModel, view: WeightView) -> None:
    """Puts a checkpoint's weights, of whatever format, into the model, one tensor at a time.

    Raises ExtrapolationError for a model whose parameters are named otherwise in memory than in its checkpoints.
    """
    state = model.state_dict()
    stored = {*view.names(), *view.aliases()}
    unlike = [*(name for name in state if name not in stored), *(name for name in view.names() if name not in state)]
    if unlike:
        raise ExtrapolationError(
            f"{view.path} and a {type(model).__name__} differ in {len(unlike)} names of tensors, such as {unlike[0]},"
            " so its log-probabilities cannot be measured; give --no-logprobs."
        )
    for name, parameter in state.items():
        parameter.copy_(view.read(name))


def token_batches(completions: Sequence[Completion], tokens: int) -> list[list[int]]:
    """Indices of completions in batches of so many tokens, padding included, or of one completion; short ones first."""
    lengths = [len(each.context_ids) + len(each.completion_ids) for each in completions]
    batches: list[list[int]] = []
    for index in sorted(range(len(completions)), key=lambda each: lengths[each]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel, completions: Sequence[Completion], pad_token_id: int, advance: Callable[[int], None]
) -> Tensor:
    """[N] in float64: log p(token | prompt, tokens before) of all completion tokens, one completion after the other.

    Full softmax at temperature TEMPERATURE. `advance` is told the completions done.
    """
    found: dict[int, Tensor] = {}
    for indices in token_batches(completions, TOKENS_AT_ONCE):
        rows = [
            TrainRow(each.context_ids, each.completion_ids, [True] * len(each.completion_ids), 0.0)
            for each in (completions[index] for index in indices)
        ]
        batch = collate(rows, UNUSED, pad_token_id, model.device)
        logprobs = read_completions(model, batch, TEMPERATURE, LOGPROBS).stats.logprobs.cpu().double()
        for place, index in enumerate(indices):
            found[index] = logprobs[place, : len(completions[index].completion_ids)]
        advance(len(indices))
    return torch.cat([found[index] for index in range(len(completions))])


def measure_logprobs(
    model: PreTrainedModel,
    views: Sequence[WeightView],
    completions: Sequence[Completion],
    pad_token_id: int,
    advance: Callable[[int], None],
) -> Tensor:
    """[T, N]: the log-probabilities of all completion tokens at each checkpoint; the model ends as the last one."""
    found = []
    for view in views:
        load_weights(model, view)
        found.append(token_logprobs(model, completions, pad_token_id, advance))
    return torch.stack(found)


def token_label(completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """Of one of all completion tokens: its text, the prompt, and its place in the completion, from 1 on."""
    for each in completions:
        if index < len(each.completion_ids):
            text = tokenizer.decode([each.completion_ids[index]])
            return f"{text!r}, prompt {each.prompt_id}, token {index + 1}"
        index -= len(each.completion_ids)
    raise IndexError(index)
