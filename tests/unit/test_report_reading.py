"""Run directories in every state a run or a crash leaves them in, as the report reads them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations.integration_utils import rewrite_logs

from rlvr.errors import UserError
from rlvr.reporting.report.completions import (
    CLIP_HEAD,
    CLIP_TAIL,
    READ_AT_MOST,
    TOKEN_ROWS,
    _evenly,
    clipped,
    pack,
    read_completions,
)
from rlvr.reporting.report.reading import read_runs
from rlvr.reporting.report.records import Run
from rlvr.reporting.report.trends import smoothed, total, trend
from rlvr.reporting.report.verdict import change_of, in_words, status_of
from tests.report_runs import HEALTHY, completion, evaluated, measured, write_completions, write_run


def read(folder: Path) -> Run:
    (run,) = read_runs([folder])
    return run


def test_a_whole_run(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "one"))
    assert (run.name, run.last_step, run.is_finished, run.notes) == ("one", 40, True, ())
    assert status_of(run) == "finished after 40 steps"
    assert len(run.series("reward/mean")) == 40
    assert run.setting("trainer.learning_rate") == 1e-5
    assert run.setting("trainer.learning_rate.more", "nothing") == "nothing"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        read(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read(tmp_path / "none")
    write_run(tmp_path / "one")
    with pytest.raises(UserError, match="is named 2 times"):
        read_runs([tmp_path / "one", tmp_path / "one" / ".." / "one"])


def test_a_run_that_died_in_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("trainer: {max_steps: 5}\n")
    run = read(tmp_path)
    assert (run.steps, run.last_step, run.is_finished) == ([], 0, False)
    assert status_of(run) == "ended, or was seen, before its first step was logged"
    assert run.notes == ("metrics.jsonl is missing: the run logged no step.", "run.json is missing.")
    assert "too few steps" in in_words(run)[0]


def test_lines_that_a_crash_cut_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": NaN, "reward/mean": 0.5, "text": "x", "flag": true}',
        '{"step": 2, "loss": 1.5, "reward/mean": null}',
        "[1]",
        '{"loss": 3}',
        '{"step": 3, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = read(tmp_path)
    assert run.series("loss").steps.tolist() == [2]
    assert run.missing_at("loss") == [1]
    assert run.metric_names == ["reward/mean", "loss"]
    assert run.notes[0] == "metrics.jsonl has 3 lines that are no log record, as a crash leaves it; left out."


def test_newest_record_of_a_step_counts_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 1.0}, {"step": 1, "train_runtime": 1.0}, {"step": 1, "loss": 2.0}, {"step": 2}]
    records.insert(1, {"step": 1, "eval/test/pass@1": 0.5})  # beside what else the step logged
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "recipe.yaml").write_text("trainer: {max_steps: 5}\n")
    run = read(tmp_path)
    assert run.series("loss").values.tolist() == [2.0]
    assert run.series("eval/test/pass@1").values.tolist() == [0.5]
    assert status_of(run) == "not finished: step 2 of 5"


def test_broken_recipe_and_evaluation_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, evaluations={"before": [evaluated("test", pass_at_1=(0.3, 0.2, 0.4))], "after": []})
    (tmp_path / "recipe.yaml").write_text("{[")
    (tmp_path / "evaluations" / "step-000010.json").write_text('[{"name": "test"}]')
    run = read(tmp_path)
    assert run.notes == ("recipe.yaml cannot be read.", "evaluations/step-000010.json cannot be read.")
    assert [moment.name for moment in run.moments] == ["before"]
    assert change_of(run) == []


@pytest.mark.parametrize(
    "outcomes", [{"ids": [0]}, {"ids": [0], "keys": ["a"], "samples": [], "greedy": [""]}, [], {"ids": "no"}, 3]
)
def test_damaged_outcomes_are_named(tmp_path: Path, outcomes: Any) -> None:
    write_run(tmp_path, evaluations={"before": [evaluated("test", pass_at_1=(0.3, 0.2, 0.4)) | {"outcomes": outcomes}]})
    assert read(tmp_path).notes == ("evaluations/before.json cannot be read.",)


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / "seed-1"), write_run(tmp_path / "b" / "seed-1")]
    assert [run.name for run in read_runs(folders)] == ["a/seed-1", "b/seed-1"]


def test_verdict_compares_the_first_evaluation_with_the_last(tmp_path: Path) -> None:
    evaluations = {
        "after": [evaluated("test", pass_at_1=(0.5, 0.47, 0.53)), evaluated("new", pass_at_1=(0.5, 0.4, 0.6))],
        "before": [evaluated("test", pass_at_1=(0.4, 0.36, 0.44), greedy=(0.1, 0.0, 0.2))],
        "step-000010": [evaluated("test", pass_at_1=(0.9, 0.9, 0.9))],
    }
    run = read(write_run(tmp_path, evaluations=evaluations))
    assert [moment.name for moment in run.moments] == ["before", "step 10", "after"]
    (change,) = change_of(run)
    low, high = change.difference.low, change.difference.high
    assert (low, high) == (pytest.approx(0.05), pytest.approx(0.15))  # 0.1 -/+ sqrt(0.03^2 + 0.04^2)
    assert change.p_value is None
    (sentence,) = in_words(run)
    assert sentence == (
        "pass@1 on test rose from 0.400 [0.360, 0.440] to 0.500 [0.470, 0.530], a difference of +0.100 [+0.050,"
        " +0.150]."
    )


@pytest.mark.parametrize(
    ("value", "begins"), [(0.43, "These prompts do not tell the policies apart"), (0.3, "pass@1 on test fell")]
)
def test_verdict_in_words(tmp_path: Path, value: float, begins: str) -> None:
    before, after = (0.4, 0.36, 0.44), (value, value - 0.03, value + 0.03)
    evaluations = {"before": [evaluated("test", pass_at_1=before)], "after": [evaluated("test", pass_at_1=after)]}
    (sentence,) = in_words(read(write_run(tmp_path, evaluations=evaluations)))
    assert sentence.startswith(begins)


def test_a_handful_of_prompts_gives_no_verdict_however_far_apart(tmp_path: Path) -> None:
    before, after = ([measured("test", [each] * 3)] for each in ("0000", "1111"))
    (sentence,) = in_words(read(write_run(tmp_path, evaluations={"before": before, "after": after})))
    assert sentence.startswith("These prompts do not tell the policies apart")
    assert sentence.endswith("a difference of +1.000 [+1.000, +1.000], p = 0.25.")


def test_validation_sets_give_no_verdict(tmp_path: Path) -> None:
    before, after = ([evaluated("dev", "validation", pass_at_1=(x, x, x))] for x in (0.1, 0.9))
    (sentence,) = in_words(read(write_run(tmp_path, evaluations={"before": before, "after": after})))
    assert sentence.startswith(
        "No test set was evaluated at both ends. On training prompts the pass rate went from 0.3"
    )


def test_totals_and_trends(tmp_path: Path) -> None:
    records = [{"step": 10, "time/rollout_s": 2.0}, {"step": 20, "time/rollout_s": 3.0, "rare": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    run = read(tmp_path)
    assert total(run, "time/rollout_s") == 50.0  # a record of every tenth step has the mean of ten
    assert total(run, "rare") == 10.0
    assert trend(run, "rare") is None
    long = read(write_run(tmp_path / "long", metrics={"loss": lambda share: 39 * share}))
    found = trend(long, "loss")
    assert found is not None
    assert (found.early, found.late, found.early_steps, found.late_steps) == (1.5, 37.5, (1, 4), (37, 40))
    assert smoothed(long.series("loss"), 3).tolist()[:3] == pytest.approx([0.5, 1.0, 2.0])


def test_trackers_get_the_names_of_metrics_jsonl_behind_train() -> None:
    """As docs/report.md says; transformers names them so for wandb, trackio and tensorboard alike."""
    names = (*HEALTHY, "eval/heldout/pass@1")
    assert list(rewrite_logs(dict.fromkeys(names, 0.0))) == [f"train/{name}" for name in names]


# ---- completions ----------------------------------------------------------------------------------------------------


def test_columns_that_are_missing_or_unknown(tmp_path: Path) -> None:
    write_completions(tmp_path, 1, [{"completion": "a", "outcome": float("nan"), "mystery": b"x", "reward/exact": 1.0}])
    write_completions(tmp_path, 2, [completion("b\x1b[2J", hint="think", num_tokens=7)])
    (tmp_path / "completions" / "step-000003.parquet").write_bytes(b"PAR1 cut")
    found = read_completions(tmp_path / "completions")
    assert found.total == 2
    assert found.notes == ("completions/step-000003.parquet cannot be read.",)
    first, second = found.rows
    assert (first["completion"], first["prompt"], first["outcome"], first["parts"]) == ("a", None, None, {"exact": 1.0})
    assert second["completion"] == "b\\x1b[2J"
    assert (second["hint"], second["num_tokens"], second["step"], second["tokens"]) == ("think", 7, 2, None)


def test_order_of_what_is_kept(tmp_path: Path) -> None:
    """Both ends whole, then one of every outcome of every step, before a second of any."""
    for step in (1, 2, 3, 4):
        rows = [completion(f"{step}.{index}", outcome) for index, outcome in enumerate((1.0, 1.0, 0.0, None))]
        write_completions(tmp_path, step, rows)
    kept = [row["completion"] for row in read_completions(tmp_path / "completions").rows]
    assert kept[:8] == ["1.0", "1.1", "1.2", "1.3", "4.0", "4.1", "4.2", "4.3"]
    assert kept[8:] == ["2.0", "2.2", "2.3", "3.0", "3.2", "3.3", "2.1", "3.1"]


def test_packing_stops_at_its_size() -> None:
    rows = [
        {**completion(f"text {index}"), "step": 1, "place": index, "parts": {}, "tokens": None} for index in range(1200)
    ]
    whole = pack(rows, 10**6)
    assert (len(whole.chunks), whole.included) == (3, 1200)
    assert pack(rows, sum(map(len, whole.chunks)) - 1).included == 1000
    assert pack(rows, 10).included == 0
    assert base64.b64decode(whole.chunks[0])[4:8] == bytes(4)  # no time of day in them: the same bytes every time


def test_very_many_completions_are_read_at_evenly_spaced_steps(tmp_path: Path) -> None:
    paths = [tmp_path / f"step-{step:06d}.parquet" for step in range(1, 1001)]
    assert _evenly(paths, dict.fromkeys(paths, READ_AT_MOST // 1000)) == paths
    chosen = _evenly(paths, dict.fromkeys(paths, READ_AT_MOST // 100))
    assert len(chosen) == 100
    assert (chosen[0], chosen[-1]) == (paths[0], paths[-1])


def test_long_texts_keep_both_ends() -> None:
    assert clipped("x" * (CLIP_HEAD + CLIP_TAIL)) == "x" * (CLIP_HEAD + CLIP_TAIL)
    text = clipped("a" * CLIP_HEAD + "m" * 1234 + "z" * CLIP_TAIL)
    assert text == "a" * CLIP_HEAD + "\n[... 1,234 characters left out of this report ...]\n" + "z" * CLIP_TAIL


def test_values_of_tokens_are_kept_of_few_rows(tmp_path: Path) -> None:
    tokens = {"token_text": ["a", "\x1b"], "token_logprob": [-1e-9, float("nan")], "token_entropy": [0.1234, 1.0]}
    write_completions(tmp_path, 1, [completion("a", **tokens)] * (TOKEN_ROWS + 1))
    rows = read_completions(tmp_path / "completions").rows
    assert [row["tokens"] for row in rows[:2]] == [[["a", "\\x1b"], [0.0, None], [0.12, 1.0]], None]
    assert sum(row["tokens"] is not None for row in rows) <= TOKEN_ROWS
