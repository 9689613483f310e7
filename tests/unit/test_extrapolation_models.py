"""Whole models of transformers and PEFT through `rlvr extrapolate`: what is written loads and is what it should be."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from rlvr.cli import app
from tests.unit import checkpoint_files


def call(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, ["extrapolate", *map(str, arguments)])
    assert result.exit_code == 0, result.output


def model(seed: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, dtype="float32", **sizes))


def logits(policy: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(torch.arange(7).unsqueeze(0)).logits


@pytest.mark.parametrize("tied", [True, False])
def test_saved_models(tmp_path: Path, tied: bool) -> None:
    base, tuned = model(0, tied), model(1, tied)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="10KB")
    pair = ("--base", tmp_path / "base", "--tuned", tmp_path / "tuned")
    call("weights", *pair, "--alpha", 1.5, "--no-default-copies", "--out", tmp_path / "out", "--max-shard-gb", 1e-5)
    out, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        for expected, other in zip(base.parameters(), tuned.parameters(), strict=True):
            expected.lerp_(other, 1.5)
    assert (out.lm_head.weight is out.model.embed_tokens.weight) == tied
    assert torch.equal(logits(out), logits(base))
    call("weights", *pair, "--alpha", 1, "--no-default-copies", "--out", tmp_path / "same")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "same")), logits(tuned))


@pytest.mark.parametrize(
    "write",
    [
        checkpoint_files.write_sharded_safetensors,
        checkpoint_files.write_bin,
        checkpoint_files.write_sharded_bin,
        checkpoint_files.write_dcp,
        checkpoint_files.write_zero2,
        checkpoint_files.write_zero3,
    ],
)
def test_every_format(tmp_path: Path, write: Callable[[Path, checkpoint_files.StateDict], None]) -> None:
    weights = [dict(model(seed, False).state_dict()) for seed in (0, 1)]
    for step, each in enumerate(weights, start=1):
        for folder, writer in (("plain", checkpoint_files.write_safetensors), ("other", write)):
            (tmp_path / folder / f"checkpoint-{step}").mkdir(parents=True)
            writer(tmp_path / folder / f"checkpoint-{step}", each)
    for folder in ("plain", "other"):
        run = tmp_path / folder
        pair = ("--base", run / "checkpoint-1", "--tuned", run / "checkpoint-2")
        call("weights", *pair, "--at-step", 3, "--no-default-copies", "--out", run / "out")
    plain, other = (load_file(tmp_path / folder / "out/model.safetensors") for folder in ("plain", "other"))
    assert plain.keys() == other.keys() == weights[0].keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_adapters_are_extrapolated_as_merged_weights(tmp_path: Path) -> None:
    """The product B A moves on a line, its factors do not."""
    base = model(0, True)
    base.save_pretrained(tmp_path / "base")
    merged = []
    for step in (10, 30):
        policy = get_peft_model(model(0, True), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"]))
        torch.manual_seed(step)
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        policy.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        policy.save_pretrained(tmp_path / f"checkpoint-{step}")
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / f"checkpoint-{step}"
        )
        merged.append(loaded.merge_and_unload())
    pair = ("--base", tmp_path / "checkpoint-10", "--tuned", tmp_path / "checkpoint-30")
    call("weights", *pair, "--at-step", 40, "--out", tmp_path / "out")
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    first, second = (each.state_dict() for each in merged)
    for name, value in out.items():
        assert torch.allclose(value, first[name] + 1.5 * (second[name] - first[name]), atol=1e-6), name
    shutil.move(tmp_path / "base", tmp_path / "moved")
    call("weights", *pair, "--alpha", 1.5, "--out", tmp_path / "again", "--adapter-base", tmp_path / "moved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], out[name]) for name in out)
