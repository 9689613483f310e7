"""Whether the verifier finds each training row's own reference right, before anything is trained on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from datasets import Dataset
from rich.console import Console
from rich.progress import Progress

from rewards._item import ItemReward, Judgement
from rlvr.config.problems import shown
from rlvr.config.schema import DataConfig, Recipe, RewardsConfig
from rlvr.errors import DataError
from rlvr.gathering import from_main_process
from rlvr.progress_bars import progress_columns
from rlvr.verification import RewardFunction
from rlvr.verification.asking import offer, told
from rlvr.verification.calling import is_async, options_and_rows, unbound
from rlvr.verification.judging import REFERENCE, gold_text, limits_of, shared_judge

CHUNK = 256  # rows between two movements of the progress bar
MAX_LISTED = 10  # rows that a message names
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class BadRow:
    """A row whose reference does not score as correct."""

    prompt_id: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.prompt_id + 1}: {self.reason}"


def self_checked(data: Dataset, functions: Sequence[RewardFunction], recipe: Recipe, console: Console) -> Dataset:
    """The training rows, under `data.self_check: drop` without those whose reference does not score as correct.

    A reference, as a completion, scores as correct when the verifier gives it at least `rewards.correct_at`. The main
    process judges, and all ranks go by what it finds. Raises DataError under `data.self_check: error` when a row that
    was looked at fails, and under `drop` when all of them do; RewardError when the verifier breaks its contract.
    """
    if recipe.data.self_check == "off":
        return data
    verifier = next(each for each in functions if each.name == recipe.rewards.verifier_name)
    if (obstacle := nothing_to_check(verifier, data)) is not None:
        console.print(f"self-check: nothing to check, as {obstacle}", markup=False, highlight=False, soft_wrap=True)
        return data
    indices = rows_to_check(data, recipe.data)
    bad = _all_bad_rows(data, indices, verifier, recipe.rewards, console)
    if not bad:
        return data
    of = f"{len(indices)} rows" if len(indices) == len(data) else f"{len(indices)} checked rows ({len(data)} in all)"
    found = (
        f"data.train: {recipe.data.train.dataset}: the reference of {len(bad)} of {of} does not score as correct with"
        f" {verifier.name!r}"
    )
    if recipe.data.self_check == "error":
        remedy = "mend these rows or the reward's args, or set data.self_check to 'drop' or 'off'"
        raise DataError(f"{found}; {remedy}:\n{listed(bad)}")
    dropped = {each.prompt_id for each in bad}
    kept = [index for index, prompt_id in enumerate(data["prompt_id"]) if prompt_id not in dropped]
    if not kept:
        remedy = "mend them or the reward's args, or set data.self_check to 'off'"
        raise DataError(f"{found}, so data.self_check 'drop' leaves none; {remedy}:\n{listed(bad)}")
    console.print(f"{found}; dropped:\n{listed(bad)}", markup=False, highlight=False, soft_wrap=True)
    return data.select(kept)


def nothing_to_check(verifier: RewardFunction, data: Dataset) -> str | None:
    """Why no reference can be put to the verifier as a completion; None where one can."""
    reward, _ = unbound(verifier.function)
    if not isinstance(reward, ItemReward):
        return f"the verifier {verifier.name!r} does not judge completions one by one"
    if is_async(reward.judge):
        return f"the verifier {verifier.name!r} is asynchronous"
    if REFERENCE not in [each.name for each in reward.columns] or not reward.reference_is_right:
        return f"for the verifier {verifier.name!r} the {REFERENCE!r} of a row is no completion"
    if not _with_reference(data):
        return f"no row has a text in {REFERENCE!r}"
    return None


def rows_to_check(data: Dataset, config: DataConfig) -> list[int]:
    """The indices of the rows with a reference, under `error` at most `self_check_rows`, evenly spaced, first and last.

    Tasks with many right answers may name none: such rows are left out.
    """
    found = _with_reference(data)
    wanted = config.self_check_rows
    if config.self_check == "drop" or len(found) <= wanted:
        return found
    if wanted == 1:
        return found[:1]
    return [found[position * (len(found) - 1) // (wanted - 1)] for position in range(wanted)]


def bad_rows(data: Dataset, verifier: RewardFunction, rewards: RewardsConfig) -> list[BadRow]:
    """The rows of `data` whose reference gets less than `rewards.correct_at`, or no verdict, in their order.

    Raises RewardError when the verifier, an `ItemReward`, breaks its contract or a column that it needs is missing.
    """
    reward, _ = unbound(verifier.function)
    assert isinstance(reward, ItemReward)
    rows = data.to_list()
    options, columns = options_and_rows(verifier, offer([row[REFERENCE] for row in rows], rows))
    items = []
    for row in columns:
        text = gold_text(reward, options, row)
        assert text is not None
        items.append((text, row))
    judge = shared_judge(rewards.workers, limits_of(rewards))
    return [
        BadRow(row["prompt_id"], _reason(row[REFERENCE], judgement, rewards.correct_at))
        for row, judgement in zip(rows, judge.judge_references(reward, options, items), strict=True)
        if judgement.value is None or judgement.value < rewards.correct_at
    ]


def listed(bad: Sequence[BadRow]) -> str:
    """The first rows, one a line, and how many more there are."""
    lines = [f"  {each}" for each in bad[:MAX_LISTED]]
    if len(bad) > MAX_LISTED:
        lines.append(f"  and {len(bad) - MAX_LISTED} more")
    return "\n".join(lines)


def _all_bad_rows(
    data: Dataset, indices: Sequence[int], verifier: RewardFunction, rewards: RewardsConfig, console: Console
) -> list[BadRow]:
    """Those of the rows at `indices`, the same on every rank, with a progress bar where the console is not quiet."""
    bad: list[BadRow] = []
    with Progress(*progress_columns(), console=console, disable=console.quiet) as progress:
        bar = progress.add_task("self-check", total=len(indices), note="")
        for first in range(0, len(indices), CHUNK):
            chunk = data.select(indices[first : first + CHUNK])
            # One after the other, as ranks that wait for all of them at once could run into a collective's time limit.
            bad += from_main_process(partial(bad_rows, chunk, verifier, rewards))
            progress.advance(bar, len(chunk))
    return bad


def _with_reference(data: Dataset) -> list[int]:
    if REFERENCE not in data.column_names:
        return []
    return [index for index, answer in enumerate(data[REFERENCE]) if answer is not None and answer.strip()]


def _reason(reference: str, judgement: Judgement, correct_at: float) -> str:
    says = " ".join(told(judgement).split())
    says = says if len(says) <= MAX_REASON else f"{says[: MAX_REASON - 3]}..."
    return f"{shown(reference)} gets {says}" + ("" if judgement.value is None else f", not {correct_at:g}")
