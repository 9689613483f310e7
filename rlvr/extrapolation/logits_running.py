"""What the commands of `rlvr extrapolate logits` do once their options are known, and what they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers import (
    BatchEncoding,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from rlvr.config import LoadedRecipe
from rlvr.data.sources import READERS
from rlvr.errors import DataError, ExtrapolationError
from rlvr.evaluation.evaluate import EvaluationResult, results_text
from rlvr.evaluation.sets import SetKind
from rlvr.evaluation.standalone import evaluate_model
from rlvr.extrapolation.logits import ExtrapolatedLM, check_same_tokens, load_extrapolated
from rlvr.model import load_tokenizer
from rlvr.progress_bars import progress_columns
from rlvr.reporting.printable import printable
from rlvr.rollout.generating import end_token_ids

PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Sampling:
    """How to complete prompts. Raises ExtrapolationError for a value out of its range."""

    max_new_tokens: int
    temperature: float  # 0 is greedy
    top_p: float
    seed: int
    uses_chat: bool  # where the tokenizer has a chat template, prompts are messages of a user

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ExtrapolationError(f"--max-new-tokens is {self.max_new_tokens}; give 1 or more.")
        if not (self.temperature >= 0.0 and math.isfinite(self.temperature)):
            raise ExtrapolationError(f"--temperature is {self.temperature:g}; give 0 (greedy) or more.")
        if not 0.0 < self.top_p <= 1.0:
            raise ExtrapolationError(f"--top-p is {self.top_p:g}; give a number above 0 and up to 1.")
        if not 0 <= self.seed < 2**32:
            raise ExtrapolationError(f"--seed is {self.seed}; give a whole number from 0 to {2**32 - 1}.")

    def config(self, pad: int, ends: list[int]) -> GenerationConfig:
        """For `generate`: these settings, and none for sampling that a model brings; the ids are those of tokens."""
        chosen: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0.0:
            others = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0}
            chosen = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, **others}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=1,
            num_return_sequences=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=pad,
            eos_token_id=ends,
            **chosen,
        )


def run_generate(
    base: str, tuned: str, alpha: float, texts: Sequence[str], file: Path | None, sampling: Sampling
) -> None:
    """Prints a completion of each of the texts and of the prompts of the file to the standard output."""
    prompts = [*texts, *([] if file is None else _prompts_of(file))]
    if not prompts:
        raise ExtrapolationError("There is nothing to complete; give --prompt TEXT or --prompts FILE.")
    if not all(prompts):
        raise ExtrapolationError("A prompt is empty; give each some text.")
    model, tokenizer = _loaded(base, tuned, alpha)
    batches = [prompts[first : first + PROMPTS_AT_ONCE] for first in range(0, len(prompts), PROMPTS_AT_ONCE)]
    set_seed(sampling.seed)
    number = 0
    # On the standard error, so that the standard output holds the completions alone.
    progress = Progress(*progress_columns(), console=Console(stderr=True), transient=True)
    bar = progress.add_task("generate", total=len(batches) * sampling.max_new_tokens, note="tokens")
    for done, batch in enumerate(batches, start=1):
        with progress:  # while it is drawn it takes what is printed for itself
            completions = _completed(model, tokenizer, batch, sampling, _Counting(progress, bar))
            progress.update(bar, completed=done * sampling.max_new_tokens)
        for prompt, (completion, is_cut) in zip(batch, completions, strict=True):
            number += 1
            cut = f", cut at {sampling.max_new_tokens} tokens" if is_cut else ""
            typer.echo(f"--- prompt {number} of {len(prompts)}\n{printable(prompt)}")
            typer.echo(f"--- completion{cut}\n{printable(completion)}")


def run_eval(
    base: str, tuned: str, alpha: float, loaded: LoadedRecipe, which: SetKind, output: Path | None
) -> list[EvaluationResult]:
    """Evaluates on the recipe's sets of that kind; prints the results and writes them where `output` says.

    The models are loaded as the recipe says of its own. Raises UserError, also where the recipe's tokenizer, which
    makes the prompts, has other tokens than the models.
    """
    if output is not None and not output.absolute().parent.is_dir():
        raise ExtrapolationError(f"--output {output}: there is no folder {output.absolute().parent}; make it first.")
    config = loaded.recipe.model
    model, tokenizer = _loaded(
        base,
        tuned,
        alpha,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    check_same_tokens(load_tokenizer(config), tokenizer, ("the recipe's model.path", "the two models"))
    console = Console()
    results = evaluate_model(loaded, model, which, console)
    console.print(_table(results, f"base {base}, tuned {tuned}, alpha {alpha:g}"))
    if output is not None:
        output.write_text(results_text(results))
    return results


def _loaded(base: str, tuned: str, alpha: float, **settings: Any) -> tuple[ExtrapolatedLM, PreTrainedTokenizerBase]:
    """The model, on the accelerator where there is one. Raises ExtrapolationError if nothing can be sampled from it."""
    disable_progress_bar()  # transformers draws one per weight file, across our own
    model, tokenizer = load_extrapolated(base, tuned, alpha, **settings)
    if (device := torch.accelerator.current_accelerator(check_available=True)) is not None:
        torch.nn.Module.to(model, device)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[tokenizer.pad_token_id]], device=model.device)).logits
    if bool(logits.isnan().any()):
        raise ExtrapolationError(f"The logits of {base} or of {tuned} are NaN; take other checkpoints.")
    return model, tokenizer


def _table(results: Sequence[EvaluationResult], title: str) -> Table:
    table = Table(title=escape(title), caption="means over prompts [95% bootstrap interval]")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    for result in results:
        name = escape(result.name)
        for metric, each in result.estimates.items():
            table.add_row(f"{name} {metric}", f"{each.value:.3f} [{each.low:.2f}, {each.high:.2f}]")
        table.add_row(f"{name} tokens", f"{result.mean_length:.2f}")
        table.add_row(f"{name} truncated", f"{result.truncated_frac:.2f}")
        table.add_row(f"{name} prompts x samples", f"{result.num_prompts} x {result.num_samples}")
    return table


class _Counting(StoppingCriteria):
    """Stops nothing and moves the bar on by a token."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        self.progress, self.bar = progress, bar

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.progress.advance(self.bar)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _completed(
    model: ExtrapolatedLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    counting: StoppingCriteria,
) -> list[tuple[str, bool]]:
    """The completions of a batch of prompts, and whether each was cut by its length."""
    encoded = _encoded(tokenizer, prompts, sampling.uses_chat).to(model.device)
    ends = end_token_ids(model, tokenizer)
    generator: Any = model
    tokens = generator.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        generation_config=sampling.config(tokenizer.pad_token_id, ends),
        stopping_criteria=StoppingCriteriaList([counting]),
    )[:, encoded["input_ids"].shape[1] :]
    are_cut = ~torch.isin(tokens, torch.tensor(ends, device=tokens.device)).any(dim=1)
    return list(zip(tokenizer.batch_decode(tokens, skip_special_tokens=True), are_cut.tolist(), strict=True))


def _encoded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], uses_chat: bool) -> BatchEncoding:
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
    if not (uses_chat and tokenizer.chat_template):
        return tokenizer(text=list(prompts), **options)
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )
    assert isinstance(encoded, BatchEncoding)
    return encoded


def _prompts_of(path: Path) -> list[str]:
    where = f"--prompts {path}"
    if path.suffix not in READERS or not path.is_file():
        raise DataError(f"{where}: no such file of prompts; give one that ends in {', '.join(READERS)}")
    prompts = [row.get("prompt") for row in READERS[path.suffix](path, where)]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        row = next(number for number, prompt in enumerate(prompts, start=1) if not isinstance(prompt, str))
        raise DataError(f"{where}: row {row} has no text as its `prompt`; give every row one")
    return texts
