"""`rlvr eval` by vLLM itself on a GPU, against `generate`: for a machine that has both (see docs/engines.md)."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.config.schema import ModelConfig
from rlvr.evaluation.samples import Sample, read_samples
from rlvr.model import load_policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed: pip install 'rlvr[vllm]'"),
]
SUMS = "reasoning_gym://chain_sum?min_terms=4&max_terms=4&max_digits=1&seed={seed}&size={size}"
VLLM = "trainer.use_vllm=true"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Sums for the starter policy, and a policy that differs from it."""
    model = load_policy(ModelConfig(path="builtin://starter"))
    torch.manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            each += 0.02 * torch.randn_like(each)
    model.save_pretrained(tmp_path / "other")
    content: dict[str, Any] = {
        "model": "builtin://starter",
        "data": {"train": {"dataset": SUMS.format(seed=1, size=50)}, "template": "solve {metadata[expression]} ="},
        "rewards": {"verifier": "reasoning_gym", "functions": ["reasoning_gym"]},
        "trainer": {"num_generations": 8, "max_completion_length": 40},
        "evaluation": {"sets": {"held": {"dataset": SUMS.format(seed=2, size=60)}}, "batch_size": 128},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def evaluated(recipe: Path, name: str, *arguments: str) -> tuple[list[Sample], dict[str, Any]]:
    """The samples of the starter policy and all results, which are kept under that name."""
    output = recipe.parent / name
    result = CliRunner().invoke(app, ["eval", str(recipe), "--output", str(output), *arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    samples = read_samples(output / "samples" / "builtin_starter" / "test")
    found: dict[str, Any] = json.loads((output / "results.json").read_text())["models"]
    return sorted(samples, key=lambda each: (each.prompt_id, each.is_greedy, each.completion_ids)), found


def test_vllm_samples_as_generate_does(recipe: Path) -> None:
    """Nearly every greedy completion is equal, and intervals of pass@1 overlap; figures with `pytest -s`."""
    by_generate, expected = evaluated(recipe, "generate")
    by_vllm, found = evaluated(recipe, "vllm", VLLM)
    greedy = [[each.completion_ids for each in samples if each.is_greedy] for samples in (by_generate, by_vllm)]
    equal = sum(first == second for first, second in zip(*greedy, strict=True))
    first, second = (each["builtin://starter"]["held"]["pass@1"] for each in (expected, found))
    print(f"{equal} of {len(greedy[0])} greedy completions equal; pass@1 {first}, {second}")  # noqa: T201
    assert equal >= 0.95 * len(greedy[0])
    assert first["low"] < second["high"]
    assert second["low"] < first["high"]


def test_interrupted_evaluation_goes_on_to_the_same_samples(recipe: Path) -> None:
    whole, _ = evaluated(recipe, "out", VLLM)
    sorted((recipe.parent / "out").rglob("*.parquet"))[1].unlink()
    again, _ = evaluated(recipe, "out", VLLM)
    assert again == whole


def test_memory_is_free_between_models(recipe: Path) -> None:
    """Each engine takes more than half of the memory, so that no two fit."""
    options = [VLLM, "trainer.vllm_gpu_memory_utilization=0.6", "--model", str(recipe.parent / "other")]
    torch.cuda.init()
    before, _ = torch.cuda.mem_get_info()
    _, found = evaluated(recipe, "two", *options, "--base", "builtin://starter")
    after, _ = torch.cuda.mem_get_info()
    assert list(found) == ["builtin://starter", str(recipe.parent / "other")]
    assert before - after < 2**30
