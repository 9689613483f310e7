"""Samples of an evaluation as files: what is written is read, what cannot be is refused, what is cut off goes on."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlvr.config.schema import RewardsConfig
from rlvr.errors import EvaluationError
from rlvr.evaluation.records import PromptRecord
from rlvr.evaluation.samples import (
    SCHEMA,
    Sample,
    append_samples,
    finished_prompts,
    judged_again,
    prompt_records,
    read_samples,
    samples_of,
    verifier_input,
)
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction, Verdicts, verify

SETTINGS = {"model": "tiny", "num_samples": 2}
SAME: Mapping[bytes, bytes] = {}


def sample(prompt_id: int = 0, outcome: float | None = 1.0, **settings: Any) -> Sample:
    return Sample(
        **{
            "set_name": "sums",
            "prompt_id": prompt_id,
            "prompt": f"{prompt_id} + 1 =",
            "completion": "<answer>1</answer>",
            "is_chat": False,
            "completion_ids": (5, 6, 7),
            "truncated": False,
            "is_greedy": False,
            "temperature": 0.7,
            "seed": 3,
            "outcome": outcome,
            "reward": outcome,
            "answer": "1",
            "token_entropy": 0.25,
            "columns": '{"answer": "1"}',
            **settings,
        }
    )


ODD = sample(2**40, None, completion="é\n<script>\x1b[31m", completion_ids=(), token_entropy=None, answer="", seed=-1)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_schema_has_the_fields_of_a_sample() -> None:
    assert SCHEMA.names == [each.name for each in fields(Sample)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, second = [sample(0), ODD], [sample(1, 0.0, is_greedy=True, temperature=0.0)]
    append_samples(tmp_path / "new" / "samples", first, SETTINGS)
    append_samples(tmp_path / "new" / "samples", second, SETTINGS)
    assert read_samples(tmp_path / "new" / "samples", SETTINGS) == first + second
    assert read_samples(tmp_path / "new" / "samples") == first + second


def test_a_missing_or_empty_folder_has_no_samples(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "nothing", SETTINGS) == []
    assert read_samples(tmp_path, SETTINGS) == []
    append_samples(tmp_path, [], SETTINGS)
    assert read_samples(tmp_path, SETTINGS) == []


def test_files_of_several_processes_do_not_overwrite_one_another(tmp_path: Path) -> None:
    paths = [append_samples(tmp_path, [sample(number)], SETTINGS, rank=number % 2) for number in range(4)]
    assert len(set(paths)) == 4
    assert {each.prompt_id for each in read_samples(tmp_path)} == {0, 1, 2, 3}


def test_no_file_is_overwritten_after_another_was_deleted(tmp_path: Path) -> None:
    paths = [append_samples(tmp_path, [sample(number)], SETTINGS) for number in range(3)]
    paths[0].unlink()
    append_samples(tmp_path, [sample(3)], SETTINGS)
    assert [each.prompt_id for each in read_samples(tmp_path)] == [1, 2, 3]


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_samples(tmp_path, [sample(0)], SETTINGS)
    whole = pq.write_table

    def full_disk(table: pa.Table, file: Any, **options: Any) -> None:
        whole(table, file, **options)
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space left"):
        append_samples(tmp_path, [sample(1)], SETTINGS)
    assert [each.name for each in tmp_path.iterdir()] == ["part-00000-000.parquet"]
    assert read_samples(tmp_path) == [sample(0)]


def test_an_unfinished_file_of_a_killed_process_is_not_read(tmp_path: Path) -> None:
    append_samples(tmp_path, [sample(0)], SETTINGS)
    (tmp_path / ".part-00001-000.parquet.4711").write_bytes(b"PAR1 and no more")
    assert read_samples(tmp_path) == [sample(0)]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = append_samples(tmp_path, [sample(number) for number in range(50)], SETTINGS)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no parquet", content[:60] + b"\0" * 400 + content[460:]):
        path.write_bytes(broken)
        with pytest.raises(EvaluationError, match=r"part-00000-000.parquet is damaged .*delete it"):
            read_samples(tmp_path)


def _rewrite(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes] = SAME) -> None:
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **metadata}), path)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = append_samples(tmp_path, [sample()], SETTINGS)
    table = pq.read_table(path)
    pq.write_table(pa.table({"prompt_id": [1]}), path)
    with pytest.raises(EvaluationError, match=r"part-00000-000.parquet holds no samples"):
        read_samples(tmp_path)
    _rewrite(path, table, {b"rlvr.samples": b"9"})
    with pytest.raises(EvaluationError, match="version 9"):
        read_samples(tmp_path)
    _rewrite(path, table.drop_columns(["answer"]))
    with pytest.raises(EvaluationError, match="other columns"):
        read_samples(tmp_path)
    without = table.set_column(SCHEMA.names.index("prompt_id"), "prompt_id", pa.array([None], pa.int64()))
    _rewrite(path, without)
    with pytest.raises(EvaluationError, match="rows without prompt_id"):
        read_samples(tmp_path)


def test_samples_drawn_with_other_settings_are_refused(tmp_path: Path) -> None:
    append_samples(tmp_path, [sample()], SETTINGS)
    with pytest.raises(EvaluationError, match="model = 'tiny', not 'large'; evaluate into another folder"):
        read_samples(tmp_path, SETTINGS | {"model": "large"})
    with pytest.raises(EvaluationError, match="top_k = None, not 5"):
        read_samples(tmp_path, SETTINGS | {"top_k": 5})
    assert read_samples(tmp_path, json.loads(json.dumps(SETTINGS)))


def test_finished_prompts_are_those_with_all_their_samples() -> None:
    greedy = {"is_greedy": True, "temperature": 0.0}
    found = [sample(0), sample(0), sample(0, **greedy), sample(1), sample(1, **greedy), sample(2), sample(2)]
    found += [sample(3, set_name="other"), sample(2, set_name="another", **greedy)]
    assert finished_prompts(found, "sums", 2, greedy=True) == {0}
    assert finished_prompts(found, "sums", 2, greedy=False) == {0, 2}
    assert finished_prompts(found, "other", 1, greedy=False) == {3}
    assert finished_prompts(found, "none", 1, greedy=False) == set()


# ---- from and to evaluation ------------------------------------------------------------------------------------------


def rollouts(prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]) -> Rollouts:
    ids = [[1] * (index + 2) for index in range(len(prompts))]
    return Rollouts(
        group_ids=[index // 2 for index in range(len(prompts))],
        prompts=prompts,
        completions=completions,
        prompt_ids=ids,
        context_ids=ids,
        completion_ids=ids,
        generated_masks=[[True] * len(each) for each in ids],
        sampling_logprobs=None,
        truncated=[index == 1 for index in range(len(prompts))],
        columns=columns,
    )


def length_and_answer(
    completions: list[Any], completion_ids: list[list[int]], answer: list[str], prompt_id: list[int], **_: Any
) -> list[float | None]:
    """Right where the completion has the answer; the reward says what else it saw."""
    texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
    rows = zip(texts, completion_ids, answer, prompt_id, strict=True)
    return [1.0 + 0.1 * len(ids) + number if right in text else 0.0 for text, ids, right, number in rows]


FUNCTIONS = [RewardFunction("reward", 1.0, length_and_answer)]
REWARDS = RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]})


@pytest.mark.parametrize("is_chat", [False, True])
def test_kept_samples_are_judged_as_they_were_at_first(tmp_path: Path, is_chat: bool) -> None:
    prompts: list[Any] = ["1+1", "1+1", "2+1", "2+1"]
    completions: list[Any] = ["2", "3 \N{SNOWMAN}", "[]", "it is 3"]
    if is_chat:
        prompts = [[{"role": "user", "content": each}] for each in prompts]
        completions = [[{"role": "assistant", "content": each}] for each in completions]
    drawn = rollouts(prompts, completions, {"answer": ["2", "2", "3", "3"], "meta": [{"a": [1]}, None, 1.5, "x"]})
    batch = {"prompts": prompts, "completions": completions, "completion_ids": drawn.completion_ids}
    verdicts = verify(FUNCTIONS, REWARDS, **batch, columns=drawn.columns, prompt_ids=drawn.group_ids)
    found = samples_of(drawn, verdicts, ["2", "3", "", "3"], set_name="sums", temperature=0.5, seed=1)
    append_samples(tmp_path, found, SETTINGS)
    kept = read_samples(tmp_path)
    assert kept == found
    assert [each.outcome for each in kept] == [1.0, 0.0, 0.0, 1.0]
    assert verifier_input(kept) == {**batch, "columns": drawn.columns, "prompt_ids": drawn.group_ids}
    again = verify(FUNCTIONS, REWARDS, **verifier_input(kept))
    assert again == verdicts
    assert judged_again(kept, again, ["2", "3", "", "3"]) == kept


def test_judging_again_changes_the_verdict_and_nothing_else() -> None:
    verdicts = Verdicts(("other",), [[0.0], [None]], [0.0, None], [0.0, None])
    found = judged_again([sample(0), sample(1)], verdicts, ["9", ""])
    assert found == [
        sample(0, 0.0, answer="9"),
        sample(1, None, answer=""),
    ]


def test_greedy_samples_are_marked() -> None:
    drawn = rollouts(["1"], ["2"], {})
    verdicts = Verdicts(("r",), [[1.0]], [1.0], [1.0])
    found = samples_of(drawn, verdicts, ["2"], set_name="s", temperature=0.0, seed=1, token_entropies=[0.5])
    assert (found[0].is_greedy, found[0].token_entropy, found[0].columns) == (True, 0.5, "{}")


def test_halves_of_surrogate_pairs_are_kept_as_question_marks(tmp_path: Path) -> None:
    drawn = rollouts(["1"], ["a\ud800b"], {"answer": ["\ud800"]})
    verdicts = Verdicts(("r",), [[1.0]], [1.0], [1.0])
    append_samples(tmp_path, samples_of(drawn, verdicts, ["\ud800"], set_name="s", temperature=1.0, seed=1), SETTINGS)
    kept = read_samples(tmp_path)[0]
    assert (kept.completion, kept.answer) == ("a?b", "?")
    assert json.loads(kept.columns) == {"answer": "\ud800"}


def test_columns_that_json_does_not_know_are_refused() -> None:
    drawn = rollouts(["1"], ["2"], {"answer": ["1"], "when": [{1, 2}]})
    with pytest.raises(EvaluationError, match=r"set is not JSON serializable.* answer, when"):
        samples_of(drawn, Verdicts(("r",), [[1.0]], [1.0], [1.0]), ["2"], set_name="s", temperature=1.0, seed=1)


def test_samples_of_sets_with_unlike_columns_are_judged_apart() -> None:
    with pytest.raises(EvaluationError, match="Prompt 1 of other has the columns x, others have answer"):
        verifier_input([sample(0), sample(1, set_name="other", columns='{"x": 1}')])


def test_prompt_records_are_those_of_the_evaluation() -> None:
    found = [
        sample(0, 1.0, truncated=True),
        sample(0, None, reward=None, completion_ids=(1,)),
        sample(0, 0.0, is_greedy=True, truncated=True),
        sample(1, 0.0, reward=0.5),
        sample(1, 1.0),
        replace(sample(0), set_name="other"),
    ]
    assert prompt_records(found) == {
        "sums": [
            PromptRecord(0, (1.0, None), 0.0, (1.0, None), (3, 1), 1),
            PromptRecord(1, (0.0, 1.0), None, (0.5, 1.0), (3, 3), 0),
        ],
        "other": [PromptRecord(0, (1.0,), None, (1.0,), (3,), 0)],
    }
