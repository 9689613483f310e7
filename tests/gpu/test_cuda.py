"""What runs on CUDA is what the CPU computes: the head's statistics, a step of every kind, and going on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvr.checkpointing import folders
from rlvr.ops.nucleus import SORTED_VOCABULARY
from rlvr.ops.token_stats import StatsRequest, token_stats
from rlvr.types import Rollouts
from tests.conftest import MakeTrainer, sharp, tiny_model
from tests.distributed.worker import RUNS, one_step_trainer, policy_reward, score_reward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
REQUEST = StatsRequest(entropy=True, nucleus_p=0.8, min_p=0.05)


def head_on(device: str, dtype: torch.dtype, vocab_size: int, tokens: int = 96) -> dict[str, Tensor]:
    """Statistics and gradients of one head, computed there."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, 32, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab_size, 32, generator=generator, dtype=torch.float64) / 3
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    mixed = torch.randn(3, tokens, generator=generator, dtype=torch.float64)
    leaves = [value.to(device, dtype).requires_grad_() for value in (hidden, weight)]
    stats = token_stats(*leaves, None, targets.to(device), temperature=0.9, tile_tokens=40, request=REQUEST)
    outputs = {"logprobs": stats.logprobs, "entropy": stats.entropy, "nucleus_entropy": stats.nucleus_entropy}
    loss = sum((row.to(device, value.dtype) * value).sum() for row, value in zip(mixed, outputs.values(), strict=True))
    loss.backward()
    found = {"log_kept_mass": stats.log_kept_mass, "max_prob": stats.max_prob, **outputs}
    found |= {"hidden": leaves[0].grad, "weight": leaves[1].grad}
    return {name: value.detach().cpu().double() for name, value in found.items()}


@pytest.mark.parametrize("vocab_size", [50, SORTED_VOCABULARY + 3000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_head_statistics_equal_those_of_the_cpu(vocab_size: int, dtype: torch.dtype, tolerance: float) -> None:
    expected = head_on("cpu", torch.float64, vocab_size)
    torch.backends.cuda.matmul.allow_tf32 = False
    found = head_on("cuda", dtype, vocab_size)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def gradient_of(folder: Path, name: str, **changes: Any) -> dict[str, Tensor]:
    preset, regularizers = RUNS[name]
    reward = policy_reward if name == "policy_scorer" else score_reward
    trainer = one_step_trainer(folder, preset, 1, sharp(tiny_model()), regularizers, reward, **changes)
    for regularizer in trainer.regularizers:
        regularizer.load_state_dict({"anchor": 2.0, "coef": 0.01, "last_entropy": 0.0})
        regularizer.start = lambda rollouts: None  # type: ignore[method-assign]
    before = {name: value.detach().cpu().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {key: before[key] - value.detach().cpu() for key, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "regularised", "exact_vocab", "policy_scorer"])
def test_step_moves_the_weights_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    sgd = {"optim": "sgd", "learning_rate": 1.0}
    expected = gradient_of(tmp_path / "cpu", name, use_cpu=True, **sgd)
    found = gradient_of(tmp_path / "cuda", name, use_cpu=False, **sgd)
    assert set(found) == set(expected)
    for key, value in expected.items():
        tolerance = 1e-3 * value.abs().max().item()
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=tolerance, msg=lambda m, n=key: f"{n}: {m}")
    assert sum(value.norm() for value in expected.values()) > 1e-3


@pytest.mark.parametrize("bf16", [False, True])
def test_stopped_run_goes_on_with_the_same_completions(bf16: bool, make_trainer: MakeTrainer, tmp_path: Path) -> None:
    sizes = {"steps_per_generation": 4, "num_iterations": 2, "max_steps": 9, "save_strategy": "steps", "save_steps": 3}
    options = sizes | {"use_cpu": False, "bf16": bf16, "num_generations": 4}
    seen: dict[str, list[Rollouts]] = {}
    for name, resume in (("whole", None), ("resumed", tmp_path / folders.name_of(3))):
        trainer = make_trainer(**options)
        seen[name] = []
        original = trainer.rollout

        def noted(rows: Any, original: Any = original, kept: list[Rollouts] = seen[name]) -> Rollouts:
            kept.append(original(rows))
            return kept[-1]

        trainer.rollout = noted  # type: ignore[method-assign]
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    # Four optimiser steps train on one generation: 9 steps take 3, and those after step 3 take the last two.
    assert len(seen["whole"]) == 3
    assert [each.completion_ids for each in seen["resumed"]] == [each.completion_ids for each in seen["whole"][1:]]
    assert [each.group_ids for each in seen["resumed"]] == [each.group_ids for each in seen["whole"][1:]]
