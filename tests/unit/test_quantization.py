"""QLoRA: an adapter on 4-bit or 8-bit weights, on the CPU."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlvr.config import ModelConfig, load_recipe
from rlvr.engines import check_engine
from rlvr.errors import RecipeError, UserError
from rlvr.model import load_policy
from rlvr.run import run_recipe
from tests.unit.test_lora import logits, metrics

STARTER = ModelConfig(path="builtin://starter")
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install 'rlvr[quantization]'"
)


def quantised(kind: str, **settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"path": "builtin://starter", "quantization": kind, "lora": {}} | settings)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.model.find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        load_policy(quantised("4bit"))
    assert str(raised.value) == (
        "model.quantization: '4bit' needs bitsandbytes, which is not installed; run pip install 'rlvr[quantization]'"
    )


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "share"), [("4bit", 0.08), ("8bit", 0.02)])
def test_weights_are_near_those_of_the_model(kind: str, share: float) -> None:
    """And take the bytes that they should: of a linear layer 4 or 8 bits each, and the scales."""
    plain, model = load_policy(STARTER), load_policy(quantised(kind))
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.element_size() == 1
    assert layer.weight.numel() == plain.model.layers[0].mlp.up_proj.weight.numel() // {"4bit": 2, "8bit": 1}[kind]
    assert type(model.lm_head) is torch.nn.Linear
    before, after = logits(plain), logits(model).float()
    assert 0 < (after - before).norm() < share * 10 * before.norm()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_run_trains_the_adapter_and_saves_what_reads_as_the_policy(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"solve {a} + {b} =", "answer": str(a + b)} for a in range(4) for b in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content: dict[str, Any] = {
        "model": {"path": "builtin://starter", "quantization": kind, "lora": {"rank": 4}},
        "data": {"train": {"dataset": "rows.jsonl"}},
        "rewards": {"functions": ["numeric", {"use": "format_tags", "weight": 0.5}], "workers": 0},
        "algorithm": {"preset": "dapo", "kl_coef": 0.1, "advantage": "none"},
        "trainer": {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 12}
        | {"max_steps": 2, "learning_rate": 10.0, "adam_epsilon": 1.0, "gradient_checkpointing": True, "use_cpu": True},
        "evaluation": {"num_samples": 1, "k": [1], "sets": {"rows": {"dataset": "rows.jsonl"}}},
        "report": {"to": ["none"]},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    loaded = load_recipe(tmp_path / "recipe.yaml", [f"trainer.output_dir={tmp_path / 'run'}"])
    policy = run_recipe(loaded, resume=False)
    first, second = metrics(tmp_path / "run")
    assert first["kl/k3_ref"] == pytest.approx(0, abs=1e-9)
    assert second["kl/k3_ref"] > 1e-6
    assert first["grad_norm"] > 1e-4
    # Smaller than the spacing of bfloat16 are most steps of a real learning rate.
    adapters = load_file(policy / "adapter_model.safetensors")
    assert {value.dtype for value in adapters.values()} == {torch.float32}
    moved = {name: value.norm().item() for name, value in adapters.items() if name.endswith("lora_B.weight")}
    # Of layers within blocks too, which learn through the quantised ones behind them, after an evaluation as well.
    assert min(moved.values()) > 0.01 * max(moved.values())
    base, trained = load_policy(loaded.recipe.model), load_policy(quantised(kind, path=str(policy)))
    assert trained.model.layers[0].mlp.up_proj.base_layer.weight.element_size() == 1
    assert not torch.allclose(logits(trained), logits(base), atol=1e-3)


def test_engine_that_would_shard_quantised_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"quantization: '8bit' weights cannot be sharded; launch by ddp\.yaml or"):
        check_engine(None, "8bit")  # type: ignore[arg-type]
