"""Recipes: what loads, and what it resolves to."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlvr.config import PRESETS, AlgorithmConfig, load_recipe, resolved_yaml
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.trainer_defaults import OWNED, TRAINER_DEFAULTS, merged_trainer
from tests.unit.config_text import MINIMAL, QUICKSTART, SECTIONS, error_of, load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


# What loads


def test_the_package_imports_without_torch_and_its_friends() -> None:
    heavy = {"torch", "transformers", "trl", "datasets", "numpy", "accelerate"}
    code = f"import sys, rlvr.config; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_quickstart_recipe_loads() -> None:
    loaded = load(QUICKSTART)
    recipe = loaded.recipe
    assert recipe.model.path == "builtin://starter"
    assert recipe.data.template == "solve {metadata[expression]} ="
    assert [(each.label, each.weight) for each in recipe.rewards.functions] == [
        ("reasoning_gym", 1),
        ("format_tags", 0.2),
    ]
    assert recipe.rewards.verifier_name == "reasoning_gym"
    assert recipe.evaluation.sets["heldout"].dataset.endswith("seed=2&size=200")
    assert recipe.report.to == ["wandb"]
    assert loaded.trainer["learning_rate"] == 1e-4
    assert loaded.trainer["max_grad_norm"] == 1.0
    assert loaded.path == Path("r.yaml")
    assert loaded.base_dir == Path.cwd()


def test_a_minimal_recipe_gets_every_default() -> None:
    loaded = load(MINIMAL)
    assert loaded.algorithm.preset == "dapo"
    assert loaded.recipe.rewards.verifier_name == "exact"
    assert loaded.recipe.evaluation.k == [1, 8]
    assert loaded.trainer == TRAINER_DEFAULTS | {"output_dir": "runs/r"}
    assert loaded.output_dir == Path("runs/r")


def test_an_output_dir_in_the_recipe_is_kept() -> None:
    assert load(MINIMAL + "trainer: {output_dir: elsewhere}").output_dir == Path("elsewhere")


def test_loading_does_not_change_the_defaults() -> None:
    before = dict(TRAINER_DEFAULTS)
    load(QUICKSTART, "trainer.seed=7")
    assert before == TRAINER_DEFAULTS


@pytest.mark.parametrize(
    ("use", "label"),
    [
        ("reasoning_gym", "reasoning_gym"),
        ("pkg.module:function", "function"),
        ("./rewards/mine.py:score", "score"),
        ("C:/mine.py:score", "score"),
    ],
)
def test_the_label_of_a_reward_is_the_last_part_of_use(use: str, label: str) -> None:
    assert load(MINIMAL, f"rewards.functions=[{{use: '{use}'}}]").recipe.rewards.verifier_name == label


def test_a_reward_may_have_its_own_name_and_arguments() -> None:
    function = load(
        MINIMAL, "rewards.functions=[{use: exact, name: gold, args: {tag: final}}]"
    ).recipe.rewards.functions[0]
    assert (function.label, function.args) == ("gold", {"tag": "final"})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_gives_its_switches(name: str) -> None:
    algorithm, preset = AlgorithmConfig(preset=name).resolved(), PRESETS[name]
    switches = dataclasses.asdict(preset)
    assert switches.pop("paper").startswith("arXiv:")
    assert switches.pop("note")
    RegularizersConfig.model_validate(switches.pop("regularizers"))
    assert dataclasses.asdict(algorithm) == switches | {"preset": name}


def test_switches_of_the_recipe_override_the_preset_even_with_zero() -> None:
    own = {"advantage_ddof": 0, "clip_high": 0.4, "aggregation": "constant", "kl_coef": 0.01, "dual_clip": 3.0}
    resolved = dataclasses.asdict(AlgorithmConfig(preset="grpo", **own).resolved())
    expected = dataclasses.asdict(AlgorithmConfig(preset="grpo").resolved()) | own
    assert resolved == expected


def test_recipes_cannot_be_changed_after_loading() -> None:
    loaded = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        loaded.recipe.model.path = "other"  # type: ignore[misc]


# YAML


@pytest.mark.parametrize(
    ("text", "value"), [("3e-5", 3e-5), ("1E3", 1e3), ("-2e1", -20.0), (".5e-3", 5e-4), ("1.5e3", 1500.0), ("2", 2)]
)
def test_exponents_are_numbers_in_files_and_overrides(text: str, value: float) -> None:
    assert load(MINIMAL + f"trainer: {{learning_rate: {text}}}").trainer["learning_rate"] == value
    assert load(MINIMAL, f"trainer.learning_rate={text}").trainer["learning_rate"] == value


@pytest.mark.parametrize("text", ["e5", "1e", "abc-1e5", "1e5x", "'1e5'", "2024-01-31"])
def test_what_only_resembles_a_number_or_is_a_date_stays_a_string(text: str) -> None:
    assert load(MINIMAL, "model={path: p}", f"model.revision={text}").recipe.model.revision == text.strip("'")


def test_merge_keys_may_be_overridden() -> None:
    text = MINIMAL + (
        "evaluation:\n  sets:\n    a: &a {dataset: rows, limit: 5}\n    b: {<<: *a, limit: 6}\n"
        "    c: {<<: *a, split: test}\n"
    )
    sets = load(text).recipe.evaluation.sets
    assert [(each.dataset, each.limit, each.split) for each in sets.values()] == [
        ("rows", 5, "train"),
        ("rows", 6, "train"),
        ("rows", 5, "test"),
    ]


# Overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("model=other/policy", ("model", "path"), "other/policy"),
        ("model.dtype=bfloat16", ("model", "dtype"), "bfloat16"),
        ("rewards.functions.0.weight=2", ("rewards", "functions", 0, "weight"), 2),
        ("rewards.functions.1.weight=-0.5", ("rewards", "functions", 1, "weight"), -0.5),
        ("rewards.functions.1=exact", ("rewards", "functions", 1, "use"), "exact"),
        ("data.train.dataset=hub/rows?a=b", ("data", "train", "dataset"), "hub/rows?a=b"),
        ("data.template=", ("data", "template"), None),
        ("data.train.columns={prompt: question}", ("data", "train", "columns"), {"prompt": "question"}),
        ("evaluation.sets.more.dataset=rows.jsonl", ("evaluation", "sets", "more", "dataset"), "rows.jsonl"),
        ("evaluation.k=[1, 2]", ("evaluation", "k"), [1, 2]),
        ("report.to=[none]", ("report", "to"), ["none"]),
        ("trainer.generation_kwargs.do_sample=true", ("trainer", "generation_kwargs"), {"do_sample": True}),
    ],
)
def test_overrides(override: str, path: tuple[str | int, ...], value: Any) -> None:
    found: Any = load(QUICKSTART, override).recipe.model_dump()
    for part in path:
        found = found[part]
    assert found == value


def test_the_last_override_wins_and_a_shorthand_keeps_its_value() -> None:
    loaded = load(QUICKSTART, "trainer.seed=1", "trainer.seed=2", "model.dtype=float32")
    assert loaded.trainer["seed"] == 2
    assert loaded.recipe.model.path == "builtin://starter"


def test_an_override_creates_the_section_it_needs() -> None:
    assert load(MINIMAL, "algorithm.kl_coef=1e-3").algorithm.kl_coef == 1e-3


def test_an_override_leaves_the_other_users_of_an_alias_alone() -> None:
    text = MINIMAL.replace("{dataset:", "&rows {dataset:") + "evaluation: {sets: {a: *rows}}\n"
    recipe = load(text, "evaluation.sets.a.limit=3").recipe
    assert recipe.evaluation.sets["a"].limit == 3
    assert recipe.data.train.limit is None


# The trainer section


def test_steps_per_generation_counts_instead_of_gradient_accumulation() -> None:
    own = {"per_device_train_batch_size": 4, "steps_per_generation": 2}
    assert load(MINIMAL, f"trainer={own}").trainer["steps_per_generation"] == 2
    own = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 1}
    assert "per_device_train_batch_size=4 x steps_per_generation=1 = 4 is not" in error_of(MINIMAL, f"trainer={own}")


def test_more_processes_can_complete_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    override = "trainer.per_device_train_batch_size=4"
    error_of(MINIMAL, override)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load(MINIMAL, override).trainer["per_device_train_batch_size"] == 4
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "gradient_accumulation_steps=1 x 3 processes = 12 is not a multiple" in error_of(MINIMAL, override)


def test_numbers_may_be_whole_where_a_float_is_expected() -> None:
    assert (
        load(MINIMAL, "trainer={warmup_steps: 3, max_grad_norm: 2, num_train_epochs: 0.5}").trainer["warmup_steps"] == 3
    )


def test_the_defaults_pass_their_own_checks() -> None:
    assert merged_trainer(TRAINER_DEFAULTS, "x") == TRAINER_DEFAULTS | {"output_dir": "x"}
    assert not set(OWNED) & set(TRAINER_DEFAULTS)


# resolved_yaml


def test_a_resolved_recipe_loads_to_the_same_run_and_is_a_fixed_point() -> None:
    overrides = ["model.revision='1e10'", "algorithm.clip_high=0.3", "trainer.adam_epsilon=1e-12", "report.project=ünï"]
    loaded = load(QUICKSTART, *overrides)
    text = resolved_yaml(loaded)
    Path("copy.yaml").write_text(text, encoding="utf-8")
    again = load_recipe("copy.yaml")
    assert (again.trainer, again.algorithm, again.output_dir) == (loaded.trainer, loaded.algorithm, loaded.output_dir)
    assert again.recipe.model == loaded.recipe.model
    assert again.recipe.model.revision == "1e10"
    assert again.recipe.data == loaded.recipe.data
    assert again.recipe.evaluation == loaded.recipe.evaluation
    assert again.recipe.report == loaded.recipe.report
    assert resolved_yaml(again) == text


def test_a_resolved_recipe_writes_everything_out() -> None:
    content = yaml.safe_load(resolved_yaml(load(MINIMAL)))
    assert content["algorithm"] == dataclasses.asdict(load(MINIMAL).algorithm)
    assert set(content["trainer"]) == set(TRAINER_DEFAULTS)
    assert content["trainer"]["output_dir"] == "runs/r"
    assert content["rewards"]["verifier"] == "exact"
    assert content["rewards"]["functions"] == [
        {"use": "exact", "name": "exact", "weight": 1.0, "clip": None, "args": {}}
    ]
    assert list(content) == SECTIONS.split(", ")


def test_a_weight_may_be_a_schedule_and_a_clip_is_a_pair() -> None:
    function = "{use: exact, weight: {0: 1, 10: -0.5}, clip: [-1, 2]}"
    loaded = load(MINIMAL, f"rewards.functions=[{function}]", "rewards.gate=exact", "rewards.gate_at=0.5")
    config = loaded.recipe.rewards.functions[0]
    assert (config.weight, config.clip) == ({0: 1.0, 10: -0.5}, (-1.0, 2.0))
    Path("copy.yaml").write_text(resolved_yaml(loaded), encoding="utf-8")
    assert load_recipe("copy.yaml").recipe.rewards == loaded.recipe.rewards.model_copy(
        update={"verifier": "exact", "functions": load_recipe("copy.yaml").recipe.rewards.functions}
    )
    assert load_recipe("copy.yaml").recipe.rewards.functions[0].clip == (-1.0, 2.0)


def test_a_resolved_recipe_finds_its_local_files_from_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "rows.jsonl").touch()
    (folder / "mine.py").touch()
    (tmp_path / "held.csv").touch()
    (folder / "r.yaml").write_text(
        "model: m\ndata: {train: {dataset: rows.jsonl}}\nrewards: {functions: ['./mine.py:score', 'pkg.mod:other']}\n"
        "evaluation: {sets: {a: {dataset: held.csv}, b: {dataset: gone.json}, c: {dataset: org/name}}}\n"
    )
    content = yaml.safe_load(resolved_yaml(load_recipe("recipes/r.yaml")))
    assert content["data"]["train"]["dataset"] == str(folder / "rows.jsonl")
    assert [each["use"] for each in content["rewards"]["functions"]] == [f"{folder / 'mine.py'}:score", "pkg.mod:other"]
    datasets = [each["dataset"] for each in content["evaluation"]["sets"].values()]
    assert datasets == [str(tmp_path / "held.csv"), "gone.json", "org/name"]
