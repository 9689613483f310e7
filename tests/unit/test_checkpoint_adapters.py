"""LoRA adapters as PEFT saves them are the model that PEFT merges; what they do not cover is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3ForCausalLM

from rlvr.errors import CheckpointError
from rlvr.extrapolation.checkpoints import open_checkpoint
from tests.conftest import tiny_model

QUERY = "model.layers.0.self_attn.q_proj.weight"
LINEAR = ["q_proj", "v_proj", "down_proj"]


def untied_model() -> PreTrainedModel:
    config = tiny_model(hidden_size=15).config
    config.tie_word_embeddings = False
    return Qwen3ForCausalLM(config)


def tiny_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=12, n_layer=2, n_head=2))


def save_adapter(folder: Path, model: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    """Saves the base in `folder`/base and an adapter with random values in `folder`/adapter; the merged model."""
    model.save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": LINEAR, "lora_alpha": 6} | settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.copy_(torch.randn_like(value))
    adapted.save_pretrained(folder / "adapter")
    return adapted.merge_and_unload()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
        "alpha_pattern": {"v_proj": 1, "q_proj": 16},
    },
    "embedding": {"target_modules": ["embed_tokens", "k_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "copies": {"modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_merged_tensors_are_those_of_peft(tmp_path: Path, case: str) -> None:
    base = {name: value.detach().clone() for name, value in untied_model().state_dict().items()}
    expected = save_adapter(tmp_path, untied_model(), **SETTINGS[case]).state_dict()
    assert set(base) == set(expected)
    check_merged(tmp_path, expected)


def check_merged(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    view, base = open_checkpoint(folder / "adapter"), open_checkpoint(folder / "base")
    assert list(view.names()) == list(base.names())
    changed = [name for name in view.names() if not torch.equal(base.read(name), expected[name])]
    assert changed
    for name in view.names():
        actual = view.read(name)
        assert actual.dtype == view.info(name).dtype == torch.float32
        if name in changed:
            torch.testing.assert_close(actual, expected[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(actual, expected[name]), name
        for first, last in ((0, 2), (3, 7), (5, None)):
            assert torch.equal(view.read(name, first, last), actual[first:last]), name


def test_fan_in_fan_out(tmp_path: Path) -> None:
    merged = save_adapter(tmp_path, tiny_gpt2(), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    check_merged(tmp_path, merged.state_dict())
    assert open_checkpoint(tmp_path / "adapter").aliases() == {"lm_head.weight": "transformer.wte.weight"}


def test_any_rows_have_the_bits_of_the_whole(tmp_path: Path) -> None:
    """Although a product of more rows may be summed up in another order."""
    model = tiny_model(hidden_size=640)
    save_adapter(tmp_path, model, r=48)
    view = open_checkpoint(tmp_path / "adapter")
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        whole = view.read(name)
        for first in range(0, len(whole), 7):
            assert torch.equal(view.read(name, first, first + 13), whole[first : first + 13]), (name, first)


def test_change_of_a_half_precision_base_is_not_rounded(tmp_path: Path) -> None:
    model = untied_model().bfloat16()
    before = model.state_dict()[QUERY].clone()
    save_adapter(tmp_path, model)
    view = open_checkpoint(tmp_path / "adapter")
    parts = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (parts[f"base_model.model.{QUERY.removesuffix('.weight')}.lora_{part}.weight"].float() for part in "AB")
    assert view.info(QUERY).dtype == torch.float32
    torch.testing.assert_close(view.read(QUERY), before.float() + 1.5 * b @ a, rtol=1e-6, atol=1e-6)
    assert view.info("model.norm.weight").dtype == torch.bfloat16


def test_base_may_be_given_or_built_in(tmp_path: Path) -> None:
    from rlvr.model_paths import resolve_model_path

    starter = Path(resolve_model_path("builtin://starter"))
    name = next(name for name in open_checkpoint(starter).names() if name.endswith("layers.0.self_attn.q_proj.weight"))
    rows, columns = open_checkpoint(starter).info(name).shape
    parts = {"lora_A": torch.randn(2, columns), "lora_B": torch.randn(rows, 2)}
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    save_file({f"{stem}.{part}.weight": value for part, value in parts.items()}, tmp_path / "adapter_model.safetensors")
    expected = open_checkpoint(starter).read(name).float() + 2 * parts["lora_B"] @ parts["lora_A"]
    for given in ("builtin://starter", "no/such-model-here"):
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": given}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        view = open_checkpoint(tmp_path, starter if given.startswith("no/") else None)
        torch.testing.assert_close(view.read(name), expected)
    with pytest.raises(CheckpointError, match=r"no/such-model-here.*is no local folder; give the folder of its base"):
        open_checkpoint(tmp_path)


# ---- what is refused -------------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora: true is not read"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not read"),
        ({"bias": "all"}, "bias: 'all' is not read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' is not read"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_setting_of_later": {"x": 1}}, "a_setting_of_later"),
        ({"lora_alpha": "much"}, "must be a number"),
        ({"lora_alpha": None}, "must be a number"),
        ({"alpha_pattern": {"(": 1}}, "no valid pattern"),
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "/no/such/folder"}, "give the folder of its base model"),
        ({"fan_in_fan_out": True}, "do not make a change of the shape"),
    ],
)
def test_setting_that_is_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_adapter(tmp_path, untied_model())
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_checkpoint(tmp_path / "adapter")
    assert str(tmp_path / "adapter") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_adapters_of_peft(tmp_path: Path) -> None:
    model = untied_model()
    model.save_pretrained(tmp_path / "base")
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="peft_type 'IA3' is not read, only LORA; merge it"):
        open_checkpoint(tmp_path / "adapter", tmp_path / "base")


def test_change_of_a_tied_tensor(tmp_path: Path) -> None:
    save_adapter(tmp_path, tiny_model(), target_modules=["embed_tokens"])
    with pytest.raises(CheckpointError, match=r"changes 'model\.embed_tokens\.weight', which is tied in its base"):
        open_checkpoint(tmp_path / "adapter")


def test_base_of_another_model(tmp_path: Path) -> None:
    save_adapter(tmp_path, untied_model())
    tiny_model(hidden_size=16).save_pretrained(tmp_path / "other")
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    for base, message in (("other", "do not make a change of the shape"), ("gpt2", "does not have")):
        with pytest.raises(CheckpointError, match=f"{message}.*give the base it was trained on"):
            open_checkpoint(tmp_path / "adapter", tmp_path / base)
    with pytest.raises(CheckpointError, match="is an adapter of the adapter"):
        open_checkpoint(tmp_path / "adapter", tmp_path / "adapter")


def test_parts_that_are_missing(tmp_path: Path) -> None:
    save_adapter(tmp_path, untied_model())
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    parts = load_file(path)
    half = {name: value for name, value in parts.items() if not name.endswith("0.self_attn.q_proj.lora_B.weight")}
    save_file(half, path)
    with pytest.raises(CheckpointError, match="only one of lora_A and lora_B"):
        open_checkpoint(tmp_path / "adapter")
    path.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        open_checkpoint(tmp_path / "adapter")
