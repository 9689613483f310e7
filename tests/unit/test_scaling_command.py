"""`rlvr doctor --model-size`: what it prints, what it advises, and bad input; and the benchmark of the estimate."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rlvr.cli import app
from rlvr.config.load import load_recipe
from rlvr.scaling.advice import advice, choose, launched, remedies, switches_of, verdict
from rlvr.scaling.architecture import KNOWN, Architecture, of_size
from rlvr.scaling.backends import BACKENDS
from rlvr.scaling.workload import GIB, Workload
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

QWEN = KNOWN["Qwen3-8B"]
H100 = 80 * GIB


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "140"})


def test_names_every_backend_and_part() -> None:
    result = doctor("--model-size", "7B", "--gpus", "8", "--kl")
    assert result.exit_code == 0, result.output
    for title in [backend.title for backend in BACKENDS.values()]:
        assert title in result.output
    for part in ("weights", "float32 masters", "optimiser states", "gradients", "reference model", "KV cache"):
        assert part in result.output
    for part in ("activations, checkpointed", "activations, all kept", "LM head", "gathered weights", "CPU memory"):
        assert part in result.output
    assert "interpolated between Qwen3-4B and Qwen3-8B" in result.output
    assert "Choose ZeRO-2" in result.output


def test_quantized_leaves_out_what_cannot_divide_it() -> None:
    result = doctor("--model", "Qwen/Qwen3-8B", "--lora", "16", "--quantized")
    assert result.exit_code == 0, result.output
    assert "adapters of rank 16 trained, the rest in 4 bits" in result.output
    assert "FSDP2" not in result.output


def test_reads_a_local_config(tmp_path: Path) -> None:
    config = json.loads((ROOT / "rlvr" / "starter" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "config.json"):
        result = doctor("--model", str(path))
        assert result.exit_code == 0, result.output
        assert "hidden 128, 4 layers, 4 heads (2 for keys), intermediate 384, vocabulary 1507" in " ".join(
            result.output.split()
        )


CONFIG = {"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model-size", "7X"], "'7X' is no size"),
        (["--model-size", "0B"], "'0B' is no size"),
        (["--model-size", "-7B"], "'-7B' is no size"),
        (["--model-size", "7000B"], "7000B is not between 0.6B and 72.7B"),
        (["--model-size", "7B", "--model", "x"], "give one of them"),
        (["--model-size", "7B", "--gpus", "0"], "--gpus is 0"),
        (["--model-size", "7B", "--gpus", "-1"], "--gpus is -1"),
        (["--model-size", "7B", "--gpu-memory", "0"], "--gpu-memory is 0"),
        (["--model-size", "7B", "--gpu-memory", "nan"], "--gpu-memory is nan"),
        (["--model-size", "7B", "--gpu-memory", "inf"], "--gpu-memory is inf"),
        (["--model-size", "7B", "--batch", "0"], "--batch is 0"),
        (["--model-size", "7B", "--accumulation", "0"], "--accumulation is 0"),
        (["--model-size", "7B", "--prompt-length", "0"], "--prompt-length is 0"),
        (["--model-size", "7B", "--completion-length", "0"], "--completion-length is 0"),
        (["--model-size", "7B", "--group", "1"], "--group is 1"),
        (["--model-size", "7B", "--batch", "3", "--gpus", "2"], "= 6 completions are no multiple of --group 8"),
        (["--model-size", "7B", "--lora", "0"], "--lora is 0"),
        (["--model-size", "7B", "--quantized"], "add --lora RANK"),
        (["--model-size", "7B", "--quantized", "--lora", "8", "--dtype", "float32"], "leave out --dtype float32"),
        (["--gpus", "8"], "--gpus is of an estimate"),
        (["--model", "./nowhere"], "no folder with a config.json"),
        (["--model", "Qwen/Qwen3-9B"], "did you mean 'Qwen3-8B'?"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    result = doctor(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no JSON file"),
        ("[1]", "holds no mapping"),
        (json.dumps(CONFIG), "has no usable intermediate_size"),
        (json.dumps(CONFIG | {"intermediate_size": "8"}), "has no usable intermediate_size"),
        (json.dumps(CONFIG | {"num_experts": 8}), "mixture of experts"),
    ],
)
def test_bad_config_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(content)
    result = doctor("--model", str(tmp_path))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_verdict_leaves_room() -> None:
    assert verdict(72 * GIB, H100) == "fits"
    assert verdict(72.1 * GIB, H100) == "tight"
    assert verdict(80.1 * GIB, H100) == "no"


def chosen(sizes: Architecture, gpus: int, gib: float, work: Workload) -> tuple[str, str, bool] | None:
    found = choose(sizes, work, gpus, gib * GIB)
    return None if found is None else (found.found.backend, found.work.weights, found.work.gathers_to_sample)


def test_choice_is_the_simplest_that_fits_and_rounds_nothing() -> None:
    work = Workload(batch=1, group=2, accumulation=8, prompt_length=256)
    adapters = replace(work, lora_rank=16)
    assert chosen(QWEN, 8, 80, work) == ("zero2", "bfloat16", True)
    assert chosen(QWEN, 8, 80, adapters) == ("ddp", "bfloat16", True)  # adapters are float32
    assert chosen(QWEN, 1, 80, adapters) == ("single", "bfloat16", True)
    assert chosen(KNOWN["Qwen3-1.7B"], 8, 80, work) == ("ddp", "float32", True)
    assert chosen(KNOWN["Qwen3-1.7B"], 1, 80, work) == ("single", "float32", True)
    assert chosen(KNOWN["Qwen3-4B"], 1, 80, work) == ("single", "bfloat16", True)
    assert chosen(KNOWN["Qwen3-32B"], 16, 80, work) == ("fsdp2", "bfloat16", True)
    assert chosen(KNOWN["Qwen3-32B"], 8, 80, work) == ("zero3", "bfloat16", False)
    assert chosen(QWEN, 1, 80, work) is None


def test_advice_says_what_to_switch_on() -> None:
    text = " ".join(advice(QWEN, Workload(), 8, H100))
    assert "trainer.gradient_checkpointing=true" in text
    assert "recipes/accelerate/zero2.yaml --num_processes 8" in text
    short = Workload(batch=1, group=2, accumulation=8, prompt_length=128, completion_length=128)
    text = " ".join(advice(QWEN, short, 8, H100))
    assert "trainer.gradient_checkpointing=false" in text
    assert "second forward pass, is not needed" in text
    assert "moves only weights below" not in text
    text = " ".join(advice(of_size("4B"), Workload(batch=2), 1, H100))
    assert "Start it: rlvr train" in text
    assert "moves only weights below" in text


def test_advice_about_offloading() -> None:
    text = " ".join(advice(QWEN, Workload(), 1, H100))
    assert "Choose ZeRO-3 offload" in text
    assert "It takes 153 GiB of CPU memory" in text  # 20 bytes of 8.19 billion
    assert "What fits on the GPUs is one GPU" in text
    assert text.count("model.lora.rank=16") == 1
    assert "Unchanged it fits 4 such GPUs with ZeRO-2." in text


def test_advice_when_nothing_fits() -> None:
    adapters = Workload(lora_rank=16, quantized=True)
    text = " ".join(advice(QWEN, replace(adapters, batch=1, group=2, accumulation=2), 1, 4 * GIB))
    assert text.startswith("Nothing fits 1 x 4 GiB; closest is one GPU")
    assert "No switch makes 8B parameters fit" in text
    text = " ".join(advice(QWEN, replace(adapters, batch=16), 1, 16 * GIB))
    assert "What fits on the GPUs is one GPU" in text
    assert "trainer.per_device_train_batch_size=8 trainer.gradient_accumulation_steps=2" in text


def test_remedies_from_mild_to_strong() -> None:
    steps = list(remedies(Workload(batch=4, weights="float32")))
    assert [(work.batch, work.accumulation, work.lora_rank, work.quantized, work.weights) for work in steps] == [
        (2, 2, None, False, "float32"),
        (1, 4, None, False, "float32"),
        (4, 1, 16, False, "float32"),
        (2, 2, 16, False, "float32"),
        (1, 4, 16, False, "float32"),
        (4, 1, 16, True, "bfloat16"),
        (2, 2, 16, True, "bfloat16"),
        (1, 4, 16, True, "bfloat16"),
    ]
    assert switches_of(steps[-1]).split()[-2:] == ["model.lora.rank=16", "model.quantization=4bit"]
    assert len(list(remedies(Workload(batch=1, lora_rank=8, quantized=True)))) == 0


def test_switches_are_keys_of_a_recipe() -> None:
    switches = switches_of(Workload(weights="float32")).split()
    loaded = load_recipe(ROOT / "recipes" / "quickstart.yaml", [*switches, "trainer.num_generations=8"])
    assert loaded.trainer["bf16"] is loaded.trainer["gradient_checkpointing"] is True
    assert loaded.recipe.model.dtype == "float32"


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "single"])
def test_launch_configurations_exist(name: str) -> None:
    assert BACKENDS[name].launch in launched(name, 8)
    assert (ROOT / "recipes" / "accelerate" / BACKENDS[name].launch).exists()


def test_benchmark_of_memory_runs_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_memory

    output = tmp_path / "memory.json"
    monkeypatch.setattr(sys, "argv", ["bench_memory.py", "--tiny", "--cases", "full", "--output", str(output)])
    bench_memory.main()
    facts: dict[str, Any] = json.loads(output.read_text())
    assert [result["case"] for result in facts["results"]] == ["full"]
    assert facts["results"][0]["peak"]["estimate_gib"] >= 0
