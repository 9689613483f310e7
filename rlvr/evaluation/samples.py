"""Every sample of an evaluation, kept as parquet: what is estimated or judged again needs no new sampling.

A folder of files, one per chunk of prompts. Each appears at once and whole, so that an evaluation that was interrupted
goes on after the last of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlvr.errors import EvaluationError
from rlvr.evaluation.records import PromptRecord

if TYPE_CHECKING:  # they import torch
    from rlvr.types import Rollouts
    from rlvr.verification import Verdicts

FORMAT, VERSION = b"rlvr.samples", b"1"
SETTINGS = b"rlvr.settings"
UNSAID = {"engine": "generate", "dtype": "auto"}  # of files from before the setting was kept


@dataclass(frozen=True)
class Sample:
    """One completion of an evaluation, with its verdict and all that a verifier needs to judge it again."""

    set_name: str
    prompt_id: int
    prompt: str  # the text, or the messages as JSON
    completion: str  # likewise
    is_chat: bool  # whether these two are messages
    completion_ids: tuple[int, ...]
    truncated: bool
    is_greedy: bool
    temperature: float
    seed: int
    outcome: float | None  # None: unscorable
    reward: float | None
    answer: str  # the text of the final answer; empty: there is none
    token_entropy: float | None  # the mean over its tokens, in nats; None: not kept
    columns: str  # the other columns of the data set's row, as a JSON object


SCHEMA = pa.schema(
    [
        ("set_name", pa.string()),
        ("prompt_id", pa.int64()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("is_chat", pa.bool_()),
        ("completion_ids", pa.list_(pa.int32())),
        ("truncated", pa.bool_()),
        ("is_greedy", pa.bool_()),
        ("temperature", pa.float64()),
        ("seed", pa.int64()),
        ("outcome", pa.float64()),
        ("reward", pa.float64()),
        ("answer", pa.string()),
        ("token_entropy", pa.float64()),
        ("columns", pa.string()),
    ]
)
NULLABLE = ("outcome", "reward", "token_entropy")


# ---- from and to the rest of evaluation ------------------------------------------------------------------------------


def samples_of(
    rollouts: "Rollouts",
    verdicts: "Verdicts",
    answers: Sequence[str],
    *,
    set_name: str,
    temperature: float,
    seed: int,
    token_entropies: Sequence[float | None] | None = None,
) -> list[Sample]:
    """The samples of B judged completions; temperature 0 makes them greedy. `answers` [B] are empty where none is.

    Raises EvaluationError for a column of the data set that JSON does not know, such as a date.
    """
    count = len(rollouts.completions)
    entropies = [None] * count if token_entropies is None else token_entropies
    return [
        Sample(
            set_name=set_name,
            prompt_id=rollouts.group_ids[index],
            prompt=stored(rollouts.prompts[index]),
            completion=stored(rollouts.completions[index]),
            is_chat=not isinstance(rollouts.completions[index], str),
            completion_ids=tuple(rollouts.completion_ids[index]),
            truncated=rollouts.truncated[index],
            is_greedy=temperature == 0.0,
            temperature=temperature,
            seed=seed,
            outcome=verdicts.outcomes[index],
            reward=verdicts.rewards[index],
            answer=_storable(answers[index]),
            token_entropy=entropies[index],
            columns=stored_columns({name: each[index] for name, each in rollouts.columns.items()}),
        )
        for index in range(count)
    ]


def judged_again(samples: Sequence[Sample], verdicts: "Verdicts", answers: Sequence[str]) -> list[Sample]:
    """The samples with the outcomes, rewards and answers of another verifier."""
    parts = zip(samples, verdicts.outcomes, verdicts.rewards, answers, strict=True)
    return [replace(each, outcome=o, reward=r, answer=_storable(answer)) for each, o, r, answer in parts]


def verifier_input(samples: Sequence[Sample]) -> dict[str, Any]:
    """The batch arguments of `rlvr.verification.verify`, as the samples were first judged with.

    Raises EvaluationError where the rows of the samples have unlike columns, as of several data sets: judge a set at a
    time.
    """
    rows = [json.loads(each.columns) for each in samples]
    names = list(rows[0]) if rows else []
    for each, row in zip(samples, rows, strict=True):
        if row.keys() != set(names):
            raise EvaluationError(
                f"Prompt {each.prompt_id} of {each.set_name} has the columns {', '.join(row)}, others have"
                f" {', '.join(names)}; judge one set at a time."
            )
    return {
        "prompts": [json.loads(each.prompt) if each.is_chat else each.prompt for each in samples],
        "completions": [json.loads(each.completion) if each.is_chat else each.completion for each in samples],
        "completion_ids": [list(each.completion_ids) for each in samples],
        "columns": {name: [row[name] for row in rows] for name in names},
        "prompt_ids": [each.prompt_id for each in samples],
    }


def prompt_records(samples: Sequence[Sample]) -> dict[str, list[PromptRecord]]:
    """What the samples of every prompt amount to, by set; the greedy one counts for `greedy_outcome` alone."""
    grouped: dict[str, dict[int, list[Sample]]] = {}
    for each in samples:
        grouped.setdefault(each.set_name, {}).setdefault(each.prompt_id, []).append(each)
    return {name: [_record(prompt_id, each) for prompt_id, each in found.items()] for name, found in grouped.items()}


def _record(prompt_id: int, samples: Sequence[Sample]) -> PromptRecord:
    drawn = [each for each in samples if not each.is_greedy]
    greedy = [each.outcome for each in samples if each.is_greedy]
    return PromptRecord(
        prompt_id=prompt_id,
        outcomes=tuple(each.outcome for each in drawn),
        greedy_outcome=greedy[0] if greedy else None,
        rewards=tuple(each.reward for each in drawn),
        lengths=tuple(len(each.completion_ids) for each in drawn),
        num_truncated=sum(each.truncated for each in drawn),
    )


def stored_columns(row: Mapping[str, Any]) -> str:
    """As `Sample.columns`. Raises EvaluationError for a value that JSON does not know."""
    try:
        return json.dumps(row)
    except TypeError as error:
        raise EvaluationError(
            f"A row of the evaluation set cannot be kept with its samples ({error}); make its columns {', '.join(row)}"
            " texts, numbers, lists or objects."
        ) from error


def stored(value: Any) -> str:
    """A prompt or completion, text or messages, as a sample has it."""
    return _storable(value if isinstance(value, str) else json.dumps(value))


def _storable(text: str) -> str:
    """Lone surrogates, which no parquet file can hold, as question marks."""
    return text.encode("utf-8", "replace").decode()


# ---- files -----------------------------------------------------------------------------------------------------------


def append_samples(folder: Path, samples: Sequence[Sample], settings: Mapping[str, Any], rank: int = 0) -> Path:
    """Adds one file with the samples to the folder, which is made if need be; there is either the whole file or none.

    `settings` are whatever the samples depend on beside the prompts, such as the model; `read_samples` compares them.
    Processes that write to one folder at a time give their ranks. All samples of a prompt belong in one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name.split("-")[1]) for path in folder.glob(f"part-*-{rank:03d}.parquet")]
    path = folder / f"part-{max(taken, default=-1) + 1:05d}-{rank:03d}.parquet"
    metadata = {FORMAT: VERSION, SETTINGS: json.dumps(settings, sort_keys=True).encode()}
    columns = {name: [getattr(each, name) for each in samples] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_samples(folder: Path, settings: Mapping[str, Any] | None = None, *, are_all: bool = True) -> list[Sample]:
    """All samples in the folder, in the order of its files; none where the folder is missing or empty.

    Raises EvaluationError that names the file for one that is damaged, of another program or of another version, and
    where `settings` are given and the samples were drawn with others. Those that are not given may be anything unless
    the ones given `are_all`.
    """
    found: list[Sample] = []
    for path in sorted(folder.glob("*.parquet")):
        table = _read(path)
        if settings is not None:
            kept, now = json.loads(table.schema.metadata[SETTINGS]), json.loads(json.dumps(settings))
            _check_settings(path, kept if are_all else {name: kept.get(name) for name in now}, now)
        columns = [table.column(name).to_pylist() for name in SCHEMA.names]
        for values in zip(*columns, strict=True):
            row = dict(zip(SCHEMA.names, values, strict=True))
            found.append(Sample(**(row | {"completion_ids": tuple(row["completion_ids"])})))
    return found


def finished_prompts(samples: Sequence[Sample], set_name: str, num_samples: int, greedy: bool) -> set[int]:
    """The prompts of a set that have all of their samples, and their greedy one if there is to be one."""
    records = prompt_records([each for each in samples if each.set_name == set_name]).get(set_name, [])
    greedy_ones = {each.prompt_id for each in samples if each.set_name == set_name and each.is_greedy}
    return {
        each.prompt_id
        for each in records
        if len(each.outcomes) >= num_samples and (not greedy or each.prompt_id in greedy_ones)
    }


def _read(path: Path) -> pa.Table:
    try:
        metadata = pq.read_schema(path).metadata or {}
        if FORMAT not in metadata:
            raise EvaluationError(f"{path} holds no samples of an evaluation; move it out of the folder.")
        if metadata[FORMAT] != VERSION:
            raise EvaluationError(
                f"{path} is of version {metadata[FORMAT].decode()} of the format, and this program reads version"
                f" {VERSION.decode()}; evaluate into another folder."
            )
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise EvaluationError(
            f"{path} is damaged ({reason}); delete it, and evaluate again to fill the gap."
        ) from error
    if not table.schema.equals(SCHEMA):
        raise EvaluationError(f"{path} has other columns than samples of an evaluation have; delete it.")
    for name in set(SCHEMA.names) - set(NULLABLE):
        if table.column(name).null_count:
            raise EvaluationError(f"{path} has rows without {name}; delete it, and evaluate again to fill the gap.")
    return table


def _check_settings(path: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    kept, now = UNSAID | dict(kept), UNSAID | dict(now)
    for name in sorted(kept.keys() | now.keys()):
        if kept.get(name) != now.get(name):
            raise EvaluationError(
                f"{path} has samples with {name} = {kept.get(name)!r}, not {now.get(name)!r}; evaluate into another"
                " folder, or with the settings of before."
            )
