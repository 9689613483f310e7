"""From the guidance section to the stage: what is wrong with columns, files and templates shows before training."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from rlvr.config.guidance import GuidanceConfig
from rlvr.config.schema import RewardsConfig
from rlvr.errors import DataError
from rlvr.guidance.build import guidance_of
from rlvr.guidance.stage import Guidance
from rlvr.guidance.teacher import TeacherGuidance
from rlvr.verification import RewardFunction, load_reward

PROMPTS = {0: "one plus one", 2: "two plus two", 3: "three plus three"}  # row 1 was dropped


def data(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict(
        {"prompt": list(PROMPTS.values()), "prompt_id": list(PROMPTS), "answer": ["2", "4", "6"], **columns}
    )


def built(section: dict[str, Any], train_data: Dataset, folder: Path = Path()) -> Any:
    functions = [RewardFunction("exact", 1.0, load_reward("exact", {}, folder))]
    make = guidance_of(
        GuidanceConfig.model_validate(section),
        train_data,
        functions,
        RewardsConfig.model_validate({"functions": ["exact"], "workers": 0}),
        base_dir=folder,
        num_rows=4,
        max_prompt_length=100,
        seed=3,
        record=lambda hint: None,
    )
    tools: Any = SimpleNamespace()
    return make(tools)


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "h.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_hints_of_a_column() -> None:
    stage = built({"rule": "nurl"}, data(hint=["double it", None, " "]))
    assert isinstance(stage, Guidance)
    assert stage.hints is not None
    assert stage.hints.ahead == {0: ("double it",)}
    assert (stage.max_prompt_length, stage.seed) == (100, 3)


def test_hints_of_a_file_beside_the_recipe_and_of_dropped_rows(tmp_path: Path) -> None:
    written(tmp_path, {"prompt_id": 2, "hints": ["a", "b"]}, {"prompt_id": 1, "hint": "of the row that was dropped"})
    stage = built({"rule": "sage", "hints": {"source": "file", "file": "h.jsonl"}}, data(), tmp_path)
    assert stage.hints.ahead == {2: ("a", "b")}


def test_a_teacher_of_a_column_and_of_a_file(tmp_path: Path) -> None:
    stage = built({"rule": "teacher", "teacher": {"column": "solution"}}, data(solution=['["x", "y"]', "z", None]))
    assert isinstance(stage, TeacherGuidance)
    assert stage.pool == {0: ("x", "y"), 2: ("z",)}
    path = written(tmp_path, *({"prompt_id": 3, "completion": text} for text in ("p", "q")))
    stage = built({"rule": "teacher", "teacher": {"file": str(path)}}, data())
    assert stage.pool == {3: ("p", "q")}


def test_the_rule_with_a_source_of_its_own_needs_no_hints() -> None:
    assert built({"rule": "exemplar"}, data()).hints is None


@pytest.mark.parametrize(
    ("section", "columns", "message"),
    [
        ({"rule": "nurl"}, {}, "column 'hint': the training data has no such column; it has prompt, prompt_id, answer"),
        ({"rule": "nurl"}, {"hint": [None, "", " "]}, "has no hint for any of the 3 training prompts; add some"),
        ({"rule": "nurl"}, {"hint": [1, 2, 3]}, "column 'hint', row 1: 1 is no text; make it one"),
        ({"rule": "teacher", "teacher": {"column": "s"}}, {}, "guidance.teacher.column 's': the training data has no"),
        (
            {"rule": "nurl", "hints": {"source": "self", "write_template": "{answer} {questio}"}},
            {},
            "names 'questio', which the row lacks",
        ),
    ],
)
def test_what_is_wrong_is_named(section: dict[str, Any], columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError) as caught:
        built(section, data(**columns))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt_id": 9, "hint": "a"}], "row 1: prompt_id 9 is none of the 3 training prompts"),
        ([{"prompt_id": 0, "hint": "a"}, {"prompt_id": 0, "hint": "b"}], "row 2: prompt_id 0 has its hint in row 1"),
        ([{"prompt_id": 0, "hint": "a", "prompt": "other"}], "but the training prompt of this id is 'one plus one'"),
        ([{"prompt_id": 0, "hint": ""}], "has no hint for any of the 3 training prompts"),
    ],
)
def test_hint_files_that_do_not_fit_the_data(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = written(tmp_path, *rows)
    with pytest.raises(DataError) as caught:
        built({"rule": "nurl", "hints": {"source": "file", "file": str(path)}}, data())
    assert message in str(caught.value)
