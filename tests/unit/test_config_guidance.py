"""The guidance section: shorthand, what each rule reads, and the one line that every mistake gets."""

from pathlib import Path

import pytest

from rlvr.config import resolved_yaml
from rlvr.config.guidance import READ_BY, GuidanceConfig
from rlvr.guidance.rules import RULES
from tests.unit.config_text import QUICKSTART, error_of, load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_the_section_there_is_no_guidance() -> None:
    assert load(QUICKSTART).recipe.guidance is None
    assert load(resolved_yaml(load(QUICKSTART))).recipe.guidance is None


@pytest.mark.parametrize(
    ("rule", "conditioning"),
    [("nurl", "keep"), ("guide", "drop_with_ratio"), ("sage", "keep"), ("exemplar", "keep")],
)
def test_a_name_is_enough_and_each_rule_conditions_as_its_paper(rule: str, conditioning: str) -> None:
    config = load(QUICKSTART, f"guidance={rule}").recipe.guidance
    assert config is not None
    assert (config.rule, config.conditioning) == (rule, conditioning)
    assert type(RULES[rule](config)).__name__.lower().startswith(rule)


def test_the_conditioning_of_a_recipe_wins() -> None:
    config = load(QUICKSTART, "guidance={rule: guide, hint_conditioning: keep}").recipe.guidance
    assert config is not None
    assert config.conditioning == "keep"


def test_the_resolved_recipe_loads_to_the_same_guidance() -> None:
    Path("h.jsonl").write_text("")
    loaded = load(
        QUICKSTART,
        "guidance={rule: sage, schedule: light, probability: {0: 1, 100: 0.25}, max_extra_rollouts: 32}",
        "guidance.hints={source: file, file: h.jsonl}",
    )
    kept = load(resolved_yaml(loaded)).recipe.guidance
    assert kept is not None
    assert kept.hints.file == str(Path("h.jsonl").resolve())
    assert loaded.recipe.guidance is not None
    same_file = kept.model_copy(update={"hints": loaded.recipe.guidance.hints})
    assert same_file == loaded.recipe.guidance


def test_every_option_belongs_to_known_rules() -> None:
    assert set(READ_BY) <= set(GuidanceConfig.model_fields)
    assert {rule for rules in READ_BY.values() for rule in rules} == {*RULES, "teacher"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{}", "rule: required key is missing; allowed here are rule, threshold"),
        ("nurll", "rule: 'nurll' is not valid; it must be 'nurl', 'guide', 'sage', 'exemplar' or 'teacher'"),
        ("{rule: nurl, treshold: 0.1}", "treshold: unknown key; did you mean 'threshold'?"),
        ("{rule: nurl, threshold: 1.0}", "threshold: 1.0 is not valid; it must be less than 1.0"),
        ("{rule: guide, plain_rollout: resample}", "plain_rollout: has no effect with rule 'guide'; it belongs to"),
        ("{rule: nurl, schedule: light}", "schedule: has no effect with rule 'nurl'; it belongs to sage"),
        ("{rule: teacher}", "teacher: is missing; say where the teacher's completions are, as teacher: {column: ...}"),
        ("{rule: teacher, teacher: {}}", "teacher.column: give one of column and file"),
        ("{rule: teacher, teacher: {column: c}, retries: 1}", "retries: has no effect with rule 'teacher'"),
        ("{rule: nurl, teacher: {column: c}}", "teacher: has no effect with rule 'nurl'; it belongs to teacher"),
        ("{rule: nurl, probability: 1.5}", "probability: 1.5 is not valid; it must be at most 1"),
        ("{rule: nurl, probability: {0: 2}}", "probability: 2.0 is not valid; it must be at most 1"),
        ("{rule: nurl, plateau_steps: 3}", "plateau_steps: has no effect with start 'first_step'"),
        ("{rule: nurl, prompt_template: '{prompt}'}", "lacks the placeholder {hint}"),
        ("{rule: nurl, prompt_template: '{prompt} {hint} {x}'}", "names 'x'; placeholders are prompt, hint"),
        ("{rule: nurl, prompt_template: '{prompt} {hint'}", "is no template"),
        ("{rule: exemplar, hints: {source: self}}", "hints: has no effect with rule 'exemplar'"),
        ("{rule: nurl, hints: {source: file}}", "hints.file: is null while source is 'file'; give the file"),
        ("{rule: nurl, hints: {file: h.jsonl}}", "hints.file: is 'h.jsonl' while source is 'column'; set source to"),
        ("{rule: nurl, hints: {refresh_every: 5}}", "hints.refresh_every: has no effect with source 'column'"),
        ("{rule: nurl, hints: {source: self, write_template: go}}", "hints.write_template: 'go' lacks the placeholder"),
        ("{rule: nurl, hints: {alone_template: 'x'}}", "hints.alone_template: 'x' lacks the placeholder {hint}"),
    ],
)
def test_mistakes_are_named_with_a_remedy(section: str, message: str) -> None:
    error = error_of(QUICKSTART, f"guidance={section}")
    assert error.startswith("r.yaml: guidance")
    assert message in error
