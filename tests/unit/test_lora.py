"""LoRA in a recipe: what is trained, what the KL penalty compares with, what is saved, and reading it again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rlvr import building
from rlvr.adapters import peft_settings
from rlvr.config import LoadedRecipe, ModelConfig, load_recipe
from rlvr.config.lora import LoRAConfig
from rlvr.errors import CheckpointError, RecipeError, UserError
from rlvr.evaluation.standalone import evaluate_model
from rlvr.extrapolation.checkpoints import open_checkpoint
from rlvr.model import load_policy, load_tokenizer
from rlvr.run import run_recipe
from tests.conftest import WORDS, sharp, tiny_model, tiny_tokenizer

STARTER = ModelConfig(path="builtin://starter")
LETTERS = WORDS[3:10]
ROWS = [{"prompt": f"{a} {b}", "answer": a} for a in LETTERS[:4] for b in LETTERS]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two steps of an adapter on the tiny policy, with a KL penalty and a checkpoint after each."""
    model = sharp(tiny_model())
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "scoring.py").write_text(
        "def vowels(completions, **_):\n    return [sum(w in 'aei' for w in c.split()) / 5 for c in completions]\n"
    )
    content: dict[str, Any] = {
        "model": {"path": str(tmp_path / "model"), "lora": {"rank": 2, "alpha": 6}},
        "data": {"train": {"dataset": "rows.jsonl"}},
        "rewards": {"functions": ["./scoring.py:vowels"], "workers": 0},
        "algorithm": {"preset": "dapo", "kl_coef": 0.5},
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 5,
            "max_steps": 2,
            "learning_rate": 0.05,
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "save_steps": 1,
        },
        "evaluation": {"num_samples": 2, "k": [1], "sets": {"heldout": {"dataset": "rows.jsonl", "limit": 9}}},
        "report": {"to": ["none"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [each for each in lines if "loss" in each]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits


def test_run_saves_an_adapter_that_reads_as_the_policy(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    policy = run_recipe(loaded, resume=False)
    base = load_policy(loaded.recipe.model)
    saved = json.loads((policy / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == loaded.recipe.model.path
    assert (saved["r"], saved["lora_alpha"]) == (2, 6.0)
    first, second = metrics(loaded.output_dir)
    assert first["kl/k3_ref"] == pytest.approx(0, abs=1e-12)  # the reference is the policy without its adapter
    assert second["kl/k3_ref"] > 1e-6
    config = loaded.recipe.model.model_copy(update={"path": str(policy)})
    model = load_policy(config)
    assert not torch.allclose(logits(model), logits(base), atol=1e-3)
    # What `rlvr extrapolate` reads is the same model.
    view = open_checkpoint(policy)
    assert view.step == 2
    merged = load_policy(loaded.recipe.model)
    merged.load_state_dict({name: view.read(name) for name in view.names()}, strict=False)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)
    assert open_checkpoint(loaded.output_dir / "checkpoint-1").step == 1
    # And what it is measured by, the numbers of the run.
    after = json.loads((loaded.output_dir / "evaluations" / "after.json").read_text())
    results = evaluate_model(loaded, load_policy(config), "test", Console(quiet=True))
    assert [json.loads(json.dumps(each.to_json())) for each in results] == after
    assert load_tokenizer(config).get_vocab() == tiny_tokenizer().get_vocab()
    (policy / "tokenizer_config.json").unlink()
    (policy / "tokenizer.json").unlink()
    assert load_tokenizer(config).get_vocab() == tiny_tokenizer().get_vocab()
    with pytest.raises(RecipeError, match=r"policy' is an adapter, from which no run can start; merge it by `rlvr ext"):
        run_recipe(load_recipe(recipe, [f"model.path={policy}", f"trainer.output_dir={recipe.parent / 'x'}"]), False)


def test_resumed_run_goes_on_with_the_adapter(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    whole = load_file(run_recipe(loaded, resume=False) / "adapter_model.safetensors")
    run = loaded.output_dir
    for name in ("checkpoint-2", "policy"):
        shutil.rmtree(run / name)
    resumed = load_file(run_recipe(loaded, resume=True) / "adapter_model.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_new_adapters_are_the_same_on_every_process_and_as_the_recipe_says(recipe: Path) -> None:
    """Their random start comes from trainer.seed, not from what was drawn before."""
    changes = ["model.lora.dropout=0.25", "trainer.disable_dropout=false", "model.lora.modules_to_save=[norm]"]
    loaded = load_recipe(recipe, [*changes, "model.lora.target_modules=[q_proj, layers.1.mlp.up_proj]"])
    torch.manual_seed(123)
    first = trained_parts(loaded)
    torch.manual_seed(321)
    again = trained_parts(loaded)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert sum(name.endswith("lora_A.default.weight") for name in first) == 3
    (saved,) = [name for name in first if "modules_to_save" in name]
    assert saved.endswith(".model.norm.modules_to_save.default.weight")
    assert first.keys() == again.keys()


def trained_parts(loaded: LoadedRecipe) -> dict[str, torch.Tensor]:
    parts = building.load_parts(loaded, Console(quiet=True))
    trainer = building.build_trainer(loaded, parts, [], lambda hint: None)
    assert isinstance(trainer.model, PeftModel)
    layer = trainer.model.get_base_model().model.layers[1].mlp.up_proj
    assert (layer.lora_A["default"].out_features, layer.scaling["default"]) == (2, 3.0)
    assert layer.lora_dropout["default"].p == 0.25
    return {name: each.detach().clone() for name, each in trainer.model.named_parameters() if each.requires_grad}


def test_base_is_named_so_that_other_machines_find_it(recipe: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "solve 1 + 2 =", "answer": "3"}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scoring.py").write_text(
        "def vowels(completions, **_):\n    return [len(c) % 5 / 5 for c in completions]\n"
    )
    options = ["model.path=builtin://starter", "trainer.max_steps=1", "evaluation.sets={}", "algorithm.kl_coef=0"]
    policy = run_recipe(load_recipe(recipe, options), resume=False)
    assert json.loads((policy / "adapter_config.json").read_text())["base_model_name_or_path"] == "builtin://starter"
    assert len(open_checkpoint(policy).names()) == len(open_checkpoint(starter_folder()).names())
    assert not torch.equal(logits(load_policy(ModelConfig(path=str(policy)))), logits(load_policy(STARTER)))


def starter_folder() -> Path:
    from rlvr.model_paths import resolve_model_path

    return Path(resolve_model_path("builtin://starter"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "v_porj"]}, "target_modules: 'v_porj' is no linear layer of the model; did you"),
        ({"target_modules": ["norm"]}, "target_modules: 'norm' is no linear layer of the model; it has down_proj, "),
        ({"target_modules": ["embed_tokens"]}, "target_modules: 'embed_tokens' is no linear layer"),
        ({"target_modules": ["proj"]}, "'proj' is no linear layer of the model; did you mean"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules: 'lm_head' is the head, which the loss reads"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: 'lm_head' is the head"),
        ({"modules_to_save": ["nrom"]}, "modules_to_save: 'nrom' is no module of the model; did you mean 'norm'?"),
    ],
)
def test_modules_that_do_not_fit_the_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        peft_settings(STARTER, LoRAConfig(**settings), tiny_model())
    assert f"model.lora.{message}" in str(raised.value) or message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_adapter_that_does_not_say_or_fit_its_base(tmp_path: Path) -> None:
    config = ModelConfig(path=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no adapter's configuration, as PEFT writes it"):
        load_policy(config)
    settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    for base, message in (
        (None, "names no base_model_name_or_path; write the adapter's base there"),
        ("/no/such/model", "the folder '/no/such/model' does not exist"),
        ("builtin://starter", "does not go onto .*; give the base that it was trained on"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
        with pytest.raises(UserError, match=message):
            load_policy(config)
