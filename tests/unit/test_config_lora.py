"""The keys model.lora and model.quantization: defaults, and the one line that every mistake gets."""

from pathlib import Path

import pytest

from rlvr.config import resolved_yaml
from rlvr.config.lora import LoRAConfig
from tests.unit.config_text import QUICKSTART, error_of, load

JUMPS = "extrapolation={train_steps: 20, skip_steps: 10, validate: false}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_all_weights_are_trained_unless_the_recipe_says_otherwise() -> None:
    model = load(QUICKSTART).recipe.model
    assert (model.lora, model.quantization) == (None, None)


def test_defaults() -> None:
    lora = load(QUICKSTART, "model.lora={}").recipe.model.lora
    assert lora == LoRAConfig(rank=16, alpha=32.0, dropout=0.0, target_modules="all-linear", modules_to_save=[])


def test_the_resolved_recipe_loads_to_the_same_section() -> None:
    settings = "{rank: 4, alpha: 8, dropout: 0.1, target_modules: [q_proj, v_proj], modules_to_save: [norm]}"
    loaded = load(QUICKSTART, f"model.lora={settings}", "model.quantization=4bit", "trainer.disable_dropout=false")
    again = load(resolved_yaml(loaded))
    assert again.recipe.model == loaded.recipe.model
    assert again.recipe.model.quantization == "4bit"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.lora.rank=0"], "model.lora.rank: 0 is not valid; it must be at least 1"),
        (["model.lora.alpha=0"], "model.lora.alpha: 0 is not valid; it must be greater than 0"),
        (["model.lora.r=8"], "model.lora.r: unknown key; allowed here are rank, alpha, dropout, target_modules"),
        (["model.lora.dropuot=0.1"], "model.lora.dropuot: unknown key; did you mean 'dropout'?"),
        (["model.lora.dropout=1"], "model.lora.dropout: 1 is not valid; it must be less than 1"),
        (
            ["model.lora.dropout=0.1"],
            "model.lora.dropout: 0.1 has no effect while trainer.disable_dropout is true; set that to false",
        ),
        (
            ["model.lora.target_modules=all"],
            "model.lora.target_modules: 'all' is not valid; it must be 'all-linear' or a list of names",
        ),
        (["model.lora.target_modules=[]"], "model.lora.target_modules: [] is not valid; it must be 'all-linear' or"),
        (["model.lora.target_modules=[1]"], "model.lora.target_modules: [1] is not valid; it must be 'all-linear' or"),
        (["model.lora.modules_to_save=norm"], "model.lora.modules_to_save: 'norm' is not valid; it must be a list"),
        (["model.lora={}", "model.quantization=4"], "model.quantization: 4 is not valid; it must be '4bit' or '8bit'"),
        (["model.quantization=8bit"], "model.quantization: '8bit' weights cannot be trained; add `lora: {}`"),
        (["model.lora={}", JUMPS], "extrapolation: cannot be used with model.lora, whose factors A and B do not move"),
    ],
)
def test_mistakes(overrides: list[str], message: str) -> None:
    assert f"r.yaml: {message}" in error_of(QUICKSTART, *overrides)


@pytest.mark.parametrize(
    ("world", "size", "message"),
    [
        ("1", 24, "24 is not a multiple of per_device_train_batch_size=16 = 16; make it one"),
        ("3", 32, "32 is not a multiple of per_device_train_batch_size=16 x 3 processes = 48; make it one"),
    ],
)
def test_generation_batch_that_processes_cannot_share(
    monkeypatch: pytest.MonkeyPatch, world: str, size: int, message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    sizes = ["trainer.per_device_train_batch_size=16", f"trainer.generation_batch_size={size}"]
    assert f"trainer.generation_batch_size: {message}" in error_of(QUICKSTART, *sizes)
    monkeypatch.setenv("WORLD_SIZE", "2")
    load(QUICKSTART, sizes[0], "trainer.generation_batch_size=64")
