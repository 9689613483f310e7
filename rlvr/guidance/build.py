"""From the `guidance` section of a recipe to the guide stage."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlvr.config.guidance import GuidanceConfig, HintsConfig
from rlvr.config.schema import RewardsConfig
from rlvr.errors import DataError
from rlvr.guidance.hint_files import Hints, hints_of_column, read_completions, read_hints
from rlvr.guidance.hints import HintStore
from rlvr.guidance.leaks import states_answer
from rlvr.guidance.prompting import request_text, text_of_prompt
from rlvr.guidance.rules import RULES
from rlvr.guidance.stage import Guidance
from rlvr.guidance.teacher import Pool, TeacherGuidance
from rlvr.guidance.tools import Guide
from rlvr.tools import Tools
from rlvr.verification import RewardFunction
from rlvr.verification.judging import limits_of, shared_judge

Record = Callable[[dict[str, Any]], None]  # takes one hint, and what was found about it


def guidance_of(
    config: GuidanceConfig,
    train_data: Dataset,
    functions: list[RewardFunction],
    rewards: RewardsConfig,
    *,
    base_dir: Path,
    num_rows: int,
    max_prompt_length: int,
    seed: int,
    record: Record,
) -> Callable[[Tools], Guide]:
    """The guide stage, given the trainer's tools. Columns and files are read here, so that what is wrong with them is
    found before training. `num_rows` counts the rows of the data's source, the dropped ones too. Raises DataError.
    """
    if config.teacher is not None:
        pool = _pool(config, train_data, base_dir, num_rows)
        return partial(TeacherGuidance, config, config.teacher, pool, seed=seed)
    rule = RULES[config.rule](config)
    ahead = _hints_ahead(config.hints, train_data, base_dir, num_rows) if rule.uses_hints else None
    if rule.uses_hints and ahead is None:
        _check_templates(config.hints, train_data)
    verifier = next(each for each in functions if each.name == rewards.verifier_name)
    judge = shared_judge(rewards.workers, limits_of(rewards))
    states = partial(states_answer, judge, verifier, rewards.correct_at)

    def build(tools: Tools) -> Guide:
        hints = HintStore(config.hints, ahead, states, tools, record) if rule.uses_hints else None
        return Guidance(config, rule, hints, tools, max_prompt_length=max_prompt_length, seed=seed)

    return build


def _hints_ahead(config: HintsConfig, data: Dataset, base_dir: Path, num_rows: int) -> Hints | None:
    """None where the policy writes the hints."""
    if config.source == "self":
        return None
    if config.source == "file":
        assert config.file is not None
        prompts = dict(zip(data["prompt_id"], map(text_of_prompt, data["prompt"]), strict=True))
        hints = read_hints(found_file(config.file, base_dir), prompts, num_rows)
        where = f"guidance.hints.file {config.file!r}"
    else:
        where = f"guidance.hints.column {config.column!r}"
        hints = hints_of_column(_column(data, config.column, where), data["prompt_id"], config.column)
    if not hints:
        raise DataError(f"{where} has no hint for any of the {len(data)} training prompts; add some, or change source")
    return hints


def _pool(config: GuidanceConfig, data: Dataset, base_dir: Path, num_rows: int) -> Pool:
    assert config.teacher is not None
    if config.teacher.file is not None:
        return read_completions(found_file(config.teacher.file, base_dir), set(data["prompt_id"]), num_rows)
    assert config.teacher.column is not None
    where = f"guidance.teacher.column {config.teacher.column!r}"
    return hints_of_column(_column(data, config.teacher.column, where), data["prompt_id"], config.teacher.column)


def _column(data: Dataset, name: str, where: str) -> list[Any]:
    if name not in data.column_names:
        raise DataError(f"{where}: the training data has no such column; it has {', '.join(data.column_names)}")
    return list(data[name])


def found_file(name: str, base_dir: Path) -> Path:
    """The file beside the recipe, else in the working directory."""
    beside = base_dir / name
    return beside if beside.exists() else Path(name)


def _check_templates(config: HintsConfig, data: Dataset) -> None:
    """Fills the templates with the first row, so that a wrong name is found before training."""
    row = data[0] | {"prompt": text_of_prompt(data[0]["prompt"])}
    for template in (config.explain_template, config.write_template):
        if template is not None:
            request_text(template, row, level=1, explanation="")
