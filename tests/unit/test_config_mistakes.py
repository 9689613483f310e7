"""The one line that every mistake in a recipe gets."""

from pathlib import Path
from typing import Any

import pytest

from rlvr.config import PRESETS, load_recipe
from rlvr.config.trainer_defaults import OWNED
from rlvr.errors import RecipeError
from tests.unit.config_text import MINIMAL, MODEL_KEYS, QUICKSTART, SECTIONS, error_of, load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.seed", "override 'trainer.seed': has no key or no '='; write it as section.key=value"),
        ("=3", "override '=3': has no key or no '='; write it as section.key=value"),
        ("trainer.seed=[1", "override 'trainer.seed=[1': not valid YAML; expected ',' or ']', but got '<stream end>'"),
        ("rewards.functions.2.weight=1", "rewards.functions.2: there is no such item; indices are 0 to 1"),
        ("rewards.functions.first.weight=1", "rewards.functions.first: there is no such item; indices are 0 to 1"),
        ("rewards.functions.2=exact", "rewards.functions.2: there is no such item; indices are 0 to 1"),
        (
            "data.template.x=1",
            "data.template: is 'solve {metadata[expression]} =', which has no keys; override data.template itself",
        ),
        ("trainr.seed=1", "trainr: unknown key; did you mean 'trainer'?"),
        ("trainer.sed=1", "trainer.sed: unknown key; did you mean 'seed'?"),
        ("model.dtipe=auto", "model.dtipe: unknown key; did you mean 'dtype'?"),
    ],
)
def test_mistakes_in_overrides(override: str, message: str) -> None:
    assert error_of(QUICKSTART, override) == f"r.yaml: {message}"


# Mistakes in files


def test_a_missing_file_suggests_its_neighbour() -> None:
    Path("recipes").mkdir()
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/quickstrat.yaml")
    assert str(caught.value) == "recipes/quickstrat.yaml: there is no such file; give the path of a recipe"
    Path("recipes/quickstart.yaml").write_text(QUICKSTART)
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes/quickstrat.yaml")
    assert (
        str(caught.value) == "recipes/quickstrat.yaml: there is no such file; did you mean 'recipes/quickstart.yaml'?"
    )


def test_a_folder_is_not_a_recipe() -> None:
    Path("recipes").mkdir()
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipes")
    assert str(caught.value) == "recipes: cannot be read (Is a directory); give the path of a recipe file"


def test_a_binary_file_is_not_a_recipe() -> None:
    Path("r.yaml").write_bytes(b"model: \xff")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml")
    assert str(caught.value) == "r.yaml: is not UTF-8 at byte 7; a recipe is a YAML text file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"is empty; a recipe has the sections {SECTIONS}"),
        ("- a\n- b", f"is a list; a recipe is a mapping with the sections {SECTIONS}"),
        ("hello", f"is 'hello'; a recipe is a mapping with the sections {SECTIONS}"),
        ("model: m\ndata: [1\n", "line 3, column 1: not valid YAML; expected ',' or ']', but got '<stream end>'"),
        ("model: m\n\tdata: 1", "line 2, column 1: not valid YAML; found character '\\t' that cannot start any token"),
        (
            "model: m\ndata:\n  train: 1\n  system: a\n  train: 2\n",
            "line 5, column 3: not valid YAML; the key 'train' is already on line 3, so remove one of the two",
        ),
        (
            "model: !!python/object:os.system m",
            "line 1, column 8: not valid YAML; could not determine a constructor for the tag"
            " 'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("model: !!int m", "not valid YAML; invalid literal for int() with base 10: 'm'"),
    ],
)
def test_files_that_are_not_a_mapping(text: str, message: str) -> None:
    assert error_of(text) == f"r.yaml: {message}"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        # unknown and missing keys
        ("trainr: {}", "trainr: unknown key; did you mean 'trainer'?"),
        ("zzz: {}", f"zzz: unknown key; allowed here are {SECTIONS}"),
        ("evaluation: {sets: {a: {datset: x}}}", "evaluation.sets.a.datset: unknown key; did you mean 'dataset'?"),
        ("report: {5: x}", "report: key 5 must be a string"),
        ("evaluation: {sets: {5: {dataset: x}}}", "evaluation.sets: key 5 must be a string"),
        ("trainer: {5: x}", "trainer: key 5 must be a string"),
        (
            "evaluation: {sets: {a: {split: x}}}",
            "evaluation.sets.a.dataset: required key is missing; allowed here are dataset, subset, split, columns,"
            " limit",
        ),
        # types and ranges
        (
            "report: [wandb]",
            "report: ['wandb'] is not valid; it must be a mapping with the keys to, project, completions_every,"
            " token_values",
        ),
        (
            "report:",
            "report: null is not valid; it must be a mapping with the keys to, project, completions_every,"
            " token_values",
        ),
        ("trainer: 5", "trainer: 5 is not valid; it must be a mapping"),
        ("report: {project: 5}", "report.project: 5 is not valid; it must be a string"),
        ("report: {to: wandb}", "report.to: 'wandb' is not valid; it must be a list"),
        ("report: {to: []}", "report.to: [] is not valid; it must be a list that is not empty"),
        (
            "report: {to: [wandbb]}",
            "report.to.0: 'wandbb' is not valid; it must be 'none', 'wandb', 'trackio' or 'tensorboard'",
        ),
        ("evaluation: {num_samples: '8'}", "evaluation.num_samples: '8' is not valid; it must be a whole number"),
        ("evaluation: {num_samples: 8.5}", "evaluation.num_samples: 8.5 is not valid; it must be a whole number"),
        ("evaluation: {num_samples: true}", "evaluation.num_samples: true is not valid; it must be a whole number"),
        ("evaluation: {greedy: 1}", "evaluation.greedy: 1 is not valid; it must be true or false"),
        ("evaluation: {batch_size: 0}", "evaluation.batch_size: 0 is not valid; it must be at least 1"),
        ("evaluation: {temperature: 0}", "evaluation.temperature: 0 is not valid; it must be greater than 0.0"),
        ("evaluation: {temperature: hot}", "evaluation.temperature: 'hot' is not valid; it must be a number"),
        ("algorithm: {kl_coef: .inf}", "algorithm.kl_coef: inf is not valid; it must be a finite number"),
        ("algorithm: {advantage_ddof: 2}", "algorithm.advantage_ddof: 2 is not valid; it must be at most 1"),
        ("algorithm: {clip_low: 0}", "algorithm.clip_low: 0 is not valid; it must be greater than 0.0"),
        (
            "algorithm: {aggregation: mean}",
            "algorithm.aggregation: 'mean' is not valid; it must be 'token_mean', 'sequence_mean', 'constant' or"
            " 'token_sum'",
        ),
        # contradictions
        ("algorithm: {preset: dpo}", "algorithm.preset: unknown preset 'dpo'; did you mean 'dapo'?"),
        ("algorithm: {preset: x}", "algorithm.preset: unknown preset 'x'; presets are " + ", ".join(PRESETS)),
        (
            "algorithm: {mismatch: token_tis}",
            "algorithm.mismatch: 'token_tis' needs log-probabilities of the engine, which generate does not report; set"
            " trainer.use_vllm or trainer.use_transformers_continuous_batching to true, or algorithm.mismatch to"
            " 'none'",
        ),
        (
            "algorithm: {mismatch: icepop}\ntrainer: {use_vllm: true, top_p: 0.9}",
            "algorithm.mismatch: 'icepop' is biased under trainer.top_p=0.9: the engine reports probabilities of the"
            " kept tokens only; set trainer.top_p to 1.0 or algorithm.mismatch to 'none'",
        ),
        ("report: {to: [none, wandb]}", "report.to: 'none' excludes the others; remove it or remove wandb"),
        (
            "evaluation: {num_samples: 4}",
            "evaluation.k: pass@8 cannot be estimated; every k must be between 1 and evaluation.num_samples=4",
        ),
        (
            "evaluation: {k: [0]}",
            "evaluation.k: pass@0 cannot be estimated; every k must be between 1 and evaluation.num_samples=8",
        ),
    ],
)
def test_mistakes_in_sections(section: str, message: str) -> None:
    assert error_of(f"{MINIMAL}{section}\n") == f"r.yaml: {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=5", f"model: 5 is not valid; it must be a string or a mapping with the keys {MODEL_KEYS}"),
        ("model=''", "model.path: '' is not valid; it must be a string that is not empty"),
        ("model={}", f"model.path: required key is missing; allowed here are {MODEL_KEYS}"),
        (
            "rewards.functions=[5]",
            "rewards.functions.0: 5 is not valid; it must be a string or a mapping with the keys use, name, weight,"
            " clip, args",
        ),
        ("rewards.functions=[]", "rewards.functions: [] is not valid; it must be a list that is not empty"),
        ("rewards.functions=[a, 'm:a']", "rewards.functions: 2 functions are called 'a'; give each its own `name`"),
        ("rewards.verifier=exat", "rewards.verifier: no reward function is called 'exat'; did you mean 'exact'?"),
        ("rewards.verifier=zz", "rewards.verifier: no reward function is called 'zz'; the labels are exact"),
        ("rewards.max_unscorable=1.5", "rewards.max_unscorable: 1.5 is not valid; it must be at most 1.0"),
        ("rewards.gate=zz", "rewards.gate: no reward function is called 'zz'; the labels are exact"),
        ("rewards.gate_at=0.5", "rewards.gate_at: has no effect without a gate; set gate, or remove it"),
        ("rewards.workers=-1", "rewards.workers: -1 is not valid; it must be at least 0"),
        ("rewards.workers=auto", "rewards.workers: 'auto' is not valid; it must be a whole number"),
        ("rewards.timeout_s=0", "rewards.timeout_s: 0 is not valid; it must be greater than 0.0"),
        ("rewards.memory_mb=63", "rewards.memory_mb: 63 is not valid; it must be at least 64"),
        ("rewards.async_concurrency=0", "rewards.async_concurrency: 0 is not valid; it must be at least 1"),
        ("rewards.async_timeout_s=0", "rewards.async_timeout_s: 0 is not valid; it must be greater than 0.0"),
        *(
            (
                f"rewards.functions=[{{use: exact, weight: {value}}}]",
                f"rewards.functions.0.weight: {shown} is not valid; it must be a number, or a mapping {{step: number}}",
            )
            for value, shown in (
                ("heavy", "'heavy'"),
                ("true", "true"),
                (".inf", "inf"),
                ("{}", "{}"),
                ("{-1: 2}", "{-1: 2}"),
                ("{0: x}", "{0: 'x'}"),
            )
        ),
        *(
            (
                f"rewards.functions=[{{use: exact, clip: {value}}}]",
                f"rewards.functions.0.clip: {shown} is not valid; it must be null or two numbers [low, high] with low"
                " below high",
            )
            for value, shown in (
                ("1", "1"),
                ("[1]", "[1]"),
                ("[1, 1]", "[1, 1]"),
                ("[0, .inf]", "[0, inf]"),
                ("[a, b]", "['a', 'b']"),
            )
        ),
        ("data.train.limit=0", "data.train.limit: 0 is not valid; it must be at least 1"),
    ],
)
def test_mistakes_in_required_sections(override: str, message: str) -> None:
    assert error_of(MINIMAL, override) == f"r.yaml: {message}"


def test_a_misspelt_section_is_reported_as_such_and_not_as_missing() -> None:
    assert error_of(MINIMAL.replace("rewards", "rewrads")) == "r.yaml: rewrads: unknown key; did you mean 'rewards'?"


def test_long_values_are_cut() -> None:
    message = error_of(MINIMAL, f"evaluation.num_samples={'x' * 500}")
    assert message == f"r.yaml: evaluation.num_samples: '{'x' * 56}... is not valid; it must be a whole number"


def test_values_with_line_breaks_stay_on_one_line() -> None:
    assert "'a\\nb'" in error_of(MINIMAL + 'evaluation: {num_samples: "a\\nb"}')


# The trainer section


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("zzzzzz=1", "zzzzzz: unknown key; allowed are the fields of TRL GRPOConfig"),
        ("epsilon=0.2", "epsilon: cannot be set here; use algorithm.clip_low"),
        ("beta=0.2", "beta: cannot be set here; use algorithm.kl_coef"),
        ("use_liger_kernel=true", "use_liger_kernel: cannot be set here; it is not supported"),
        ("learning_rate=fast", "learning_rate: 'fast' is not valid; it must be a number"),
        ("learning_rate=true", "learning_rate: true is not valid; it must be a number"),
        ("learning_rate=.nan", "learning_rate: nan is not valid; it must be a number"),
        ("max_steps=1.5", "max_steps: 1.5 is not valid; it must be a whole number"),
        ("max_steps=null", "max_steps: null is not valid; it must be a whole number"),
        ("seed=true", "seed: true is not valid; it must be a whole number"),
        ("bf16=1", "bf16: 1 is not valid; it must be true or false or null"),
        ("min_p=x", "min_p: 'x' is not valid; it must be a number or null"),
        ("run_name=[a]", "run_name: ['a'] is not valid; it must be a string or null"),
        ("generation_kwargs=[1]", "generation_kwargs: [1] is not valid; it must be a mapping or a string or null"),
        ("lr_scheduler_type=linaer", "lr_scheduler_type: 'linaer' is not valid; did you mean 'linear'?"),
        ("save_strategy=zzz", "save_strategy: 'zzz' is not valid; it must be one of no, steps, epoch, best"),
        ("num_generations=1", "num_generations: 1 is not valid; it must be at least 2"),
        ("num_generations=null", "num_generations: null is not valid; it must be at least 2"),
        ("per_device_train_batch_size=0", "per_device_train_batch_size: 0 is not valid; it must be at least 1"),
        (
            "num_generations=6",
            "num_generations: per_device_train_batch_size=8 x gradient_accumulation_steps=1 = 8 is not a multiple of"
            " num_generations=6; make it one (with N processes the product counts N times)",
        ),
        (
            "generation_batch_size=12",
            "generation_batch_size: 12 is not a multiple of num_generations=8; make it one",
        ),
    ],
)
def test_mistakes_in_the_trainer_section(override: str, message: str) -> None:
    assert error_of(MINIMAL, f"trainer.{override}") == f"r.yaml: trainer.{message}"


@pytest.mark.parametrize("key", OWNED)
def test_keys_that_the_framework_owns_are_refused_with_the_key_to_use(key: str) -> None:
    assert error_of(MINIMAL, f"trainer.{key}=1") == f"r.yaml: trainer.{key}: cannot be set here; {OWNED[key]}"


@pytest.mark.parametrize("advice", sorted({text for text in OWNED.values() if text.startswith("use ")}))
def test_the_key_to_use_instead_exists(advice: str) -> None:
    known: Any = load(MINIMAL).recipe.model_dump()
    for path in advice.removeprefix("use ").replace(",", " or").split(" or "):
        found: Any = known
        for part in path.strip().replace("N", "0").split("."):
            found = found[int(part) if part.isdecimal() else part]


def test_sizes_of_a_generation_batch_may_not_contradict() -> None:
    message = error_of(MINIMAL, "trainer={generation_batch_size: 8, steps_per_generation: 1}")
    assert message == (
        "r.yaml: trainer.generation_batch_size: contradicts steps_per_generation; give only one of the two"
    )
