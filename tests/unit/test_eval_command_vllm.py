"""`rlvr eval` of a recipe whose training samples by vLLM, for which a stand-in is installed."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlvr.config import load_recipe
from rlvr.config.schema import ModelConfig
from rlvr.errors import RecipeError
from rlvr.evaluation import policies
from rlvr.evaluation.policies import check_vllm
from rlvr.evaluation.samples import SETTINGS, read_samples
from rlvr.evaluation.standalone import load_evaluation
from rlvr.run_directory import ADAPTER
from tests.unit.test_eval_command import evaluate, parts, recipe, results
from tests.unit.vllm_stand_in import Engine, install

__all__ = ["recipe"]  # a fixture
VLLM = "trainer.use_vllm=true"
SCORING = """
def asks(completions, scorer, **_):
    return [0.0] * len(completions)
"""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Every engine that is started; transformers' weights are not to be loaded beside them."""
    monkeypatch.setattr(policies, "load_policy", None)
    return install(monkeypatch)


def test_each_model_has_an_engine_for_itself(recipe: Path, engines: list[Engine]) -> None:
    tuned, base = str(recipe.parent / "tuned"), str(recipe.parent / "base")
    result = evaluate(recipe, VLLM, "--model", tuned, "--base", base)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert [each.options["model"] for each in engines] == [tuned, base]
    assert all(each.is_over for each in engines)
    values = [each["held"]["pass@1"]["value"] for each in results(recipe)["models"].values()]
    assert 0 < min(values) < max(values) < 1
    assert {each.temperature for each in engines[0].asked} == {0.0, 1.0}


def test_interrupted_evaluation_goes_on_to_the_same_samples(recipe: Path, engines: list[Engine]) -> None:
    assert evaluate(recipe, VLLM).exit_code == 0
    whole, samples = parts(recipe), read_samples(parts(recipe)[0].parent)
    whole[1].unlink()
    assert evaluate(recipe, VLLM).exit_code == 0
    assert sorted(read_samples(whole[0].parent), key=str) == sorted(samples, key=str)
    assert len(engines[1].asked) == len(engines[0].asked) * 3 // 10  # three prompts of ten


def test_samples_of_two_engines_do_not_mix(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = install(monkeypatch)
    assert evaluate(recipe, VLLM).exit_code == 0
    result = evaluate(recipe)
    assert result.exit_code == 2
    assert "samples with engine = 'vllm', not 'generate'; evaluate into another" in result.stderr.replace("\n", " ")
    assert len(engines) == 1


@pytest.mark.parametrize(("arguments", "exit_code"), [([], 0), ([VLLM], 2)])
def test_samples_from_before_engines_were_kept_are_of_generate(
    recipe: Path, arguments: list[str], exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(recipe).exit_code == 0
    for path in parts(recipe):
        table = pq.read_table(path)
        settings = json.loads(table.schema.metadata[SETTINGS])
        assert settings.pop("engine") == "generate"
        pq.write_table(table.replace_schema_metadata(table.schema.metadata | {SETTINGS: json.dumps(settings)}), path)
    parts(recipe)[2].unlink()
    install(monkeypatch)
    result = evaluate(recipe, *arguments)
    assert result.exit_code == exit_code, result.output + repr(result.exception)
    assert len(parts(recipe)) == (4 if exit_code == 0 else 3)
    if exit_code:
        assert "samples with engine = 'generate', not 'vllm'" in result.stderr.replace("\n", " ")


def test_rescoring_needs_no_engine(recipe: Path, engines: list[Engine]) -> None:
    assert evaluate(recipe, VLLM).exit_code == 0
    assert evaluate(recipe, VLLM, "--rescore", "rewards.functions.0=./my_reward.py:never").exit_code == 0
    assert len(engines) == 1


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_vllm_is_not_installed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "find_spec", lambda name: None)
    result = evaluate(recipe, VLLM)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: trainer.use_vllm: needs vllm, which is not installed; run pip install 'rlvr[vllm]', or set"
        " trainer.use_vllm to false\n"
    )


def test_adapters_are_to_be_merged(recipe: Path, engines: list[Engine]) -> None:
    adapter = recipe.parent / "adapter"
    adapter.mkdir()
    (adapter / ADAPTER).write_text("{}")
    result = evaluate(recipe, VLLM, "--model", str(adapter))
    assert result.exit_code == 2
    assert f"--model: {str(adapter)!r} is an adapter, which is not sampled by vLLM here; merge it by" in result.stderr
    assert "or set trainer.use_vllm to false" in result.stderr


def test_rewards_that_take_a_scorer(recipe: Path, engines: list[Engine]) -> None:
    (recipe.parent / "scoring.py").write_text(SCORING)
    result = evaluate(recipe, VLLM, "rewards.functions.0=./scoring.py:asks")
    assert result.exit_code == 2
    assert "rewards.functions: asks takes a scorer, which vLLM's engine cannot be; leave it out" in result.stderr


def test_model_that_is_missing(recipe: Path, engines: list[Engine]) -> None:
    result = evaluate(recipe, VLLM, "--model", "./nowhere")
    assert result.exit_code == 2
    assert "--model: the folder './nowhere' does not exist" in result.stderr
    assert not engines


def test_quantised_weights_and_devices_for_several_processes(recipe: Path, engines: list[Engine]) -> None:
    evaluation = load_evaluation(load_recipe(recipe, [VLLM, "trainer.vllm_tensor_parallel_size=2"]))
    config = evaluation.loaded.recipe.model
    check_vllm(evaluation, config, 1)
    with pytest.raises(RecipeError, match="2 devices for each of 4 processes are not supported; evaluate in one"):
        check_vllm(evaluation, config, 4)
    with pytest.raises(RecipeError, match="'4bit' weights are not sampled by vLLM here; remove it, or set trainer"):
        check_vllm(evaluation, ModelConfig(path=config.path, quantization="4bit"), 1)
