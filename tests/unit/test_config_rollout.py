"""The `rollout` section and the engine settings of the `trainer` section: defaults and mistakes."""

from pathlib import Path

import pytest

from rlvr.config import resolved_yaml
from rlvr.config.rollout import RolloutConfig
from tests.unit.config_text import MINIMAL, error_of, load


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_engine_is_checked_at_the_start_by_default() -> None:
    loaded = load(MINIMAL)
    assert loaded.recipe.rollout == RolloutConfig(check_engine="start", engine_tolerance=None)
    assert "rollout:\n  check_engine: start\n  engine_tolerance: null\n" in resolved_yaml(loaded)


def test_a_bare_off_is_off() -> None:
    loaded = load(MINIMAL + "rollout: {check_engine: off}\n")
    assert loaded.recipe.rollout.check_engine == "off"
    assert load(resolved_yaml(loaded)).recipe.rollout == loaded.recipe.rollout


def test_engine_settings_that_agree_are_taken() -> None:
    text = MINIMAL + (
        "algorithm: {mismatch: token_tis}\n"
        "trainer: {use_transformers_continuous_batching: true, top_p: 1.0,"
        " transformers_continuous_batching_config: {num_blocks: 64}, generation_kwargs: {suppress_tokens: [5]}}\n"
        "rollout: {check_engine: every_sync, engine_tolerance: 0.01}\n"
    )
    loaded = load(text)
    assert loaded.recipe.rollout == RolloutConfig(check_engine="every_sync", engine_tolerance=0.01)
    assert load(MINIMAL + "trainer: {use_vllm: true, repetition_penalty: 1.1}\n").trainer["use_vllm"] is True


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "rollout: {check_engine: always}",
            "rollout.check_engine: 'always' is not valid; it must be 'start', 'every_sync' or 'off'",
        ),
        ("rollout: {engine_tolerance: 0}", "rollout.engine_tolerance: 0 is not valid; it must be greater than 0.0"),
        (
            "rollout: {check_engine: off, engine_tolerance: 0.1}",
            "rollout.engine_tolerance: has no effect, as check_engine is 'off'; set that to 'start', or remove this",
        ),
        (
            "trainer: {use_vllm: true, use_transformers_continuous_batching: true}",
            "trainer.use_transformers_continuous_batching: contradicts use_vllm; only one engine samples, so set one of"
            " the two to false",
        ),
        (
            "trainer: {generation_kwargs: {temperature: 0.5}}",
            "trainer.generation_kwargs.temperature: would have the engine sample otherwise than the loss assumes; set"
            " trainer.temperature instead",
        ),
        (
            "trainer: {generation_kwargs: '{\"max_new_tokens\": 5}'}",
            "trainer.generation_kwargs.max_new_tokens: would have the engine sample otherwise than the loss assumes;"
            " set trainer.max_completion_length instead",
        ),
        (
            "trainer: {use_transformers_continuous_batching: true, repetition_penalty: 1.2}",
            "trainer.repetition_penalty: 1.2 cannot be applied by continuous batching; set it to 1.0, or"
            " use_transformers_continuous_batching to false",
        ),
        (
            "trainer: {use_transformers_continuous_batching: true, transformers_continuous_batching_config: {seed: 1}}",
            "trainer.transformers_continuous_batching_config.seed: would draw the same random numbers in every step;"
            " remove it, as trainer.seed decides them",
        ),
        (
            "trainer: {use_transformers_paged: true}",
            "trainer.use_transformers_paged: cannot be set here; it is an old name of"
            " use_transformers_continuous_batching",
        ),
    ],
)
def test_mistakes(section: str, message: str) -> None:
    assert error_of(MINIMAL + section + "\n") == f"r.yaml: {message}"
