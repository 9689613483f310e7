"""Directories as runs leave them, of a model of a few thousand weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM
from typer.testing import CliRunner, Result

from rlvr.cli import app
from tests.conftest import sharp, tiny_model, tiny_tokenizer

RECIPE = """\
model: {base}
data:
  train: {{dataset: {folder}/rows.jsonl}}
rewards: {{functions: [exact]}}
trainer: {{max_completion_length: 6, output_dir: {folder}/run}}
evaluation: {{batch_size: 8, sets: {{heldout: {{dataset: {folder}/heldout.jsonl}}}}}}
report: {{to: [none]}}
"""
STEPS = (100, 200, 300, 400, 500)
Move = Callable[[int, str, Tensor], Tensor]  # (step, name, weight at step 0) -> weight


def direction(name: str, like: Tensor) -> Tensor:
    """A fixed direction of each tensor, of length about that of the tensor."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return 0.3 * torch.randn(like.shape, generator=generator)


def on_a_line(step: int, name: str, weight: Tensor) -> Tensor:
    return weight + step / 500 * direction(name, weight)


def moved(move: Move, step: int) -> Qwen3ForCausalLM:
    model = sharp(tiny_model())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(move(step, name, parameter))
    return model


def make_base(folder: Path) -> Path:
    sharp(tiny_model()).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    return folder / "base"


def make_recipe(folder: Path) -> Path:
    """A run directory without checkpoints, and the prompts that its recipe names."""
    rows = [{"prompt": " ".join("abcdefghijklm"[i : i + 2 + i % 3]), "answer": "a"} for i in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text(RECIPE.format(base=folder / "base", folder=folder))
    return folder / "run"


def make_run(folder: Path, move: Move = on_a_line, steps: Sequence[int] = STEPS, policy: bool = True) -> Path:
    """A run of so many checkpoints, its policy that of the last one."""
    make_base(folder)
    run = make_recipe(folder)
    names = {f"checkpoint-{step}": step for step in steps} | ({"policy": steps[-1]} if policy else {})
    for name, step in names.items():
        moved(move, step).save_pretrained(run / name)
    return run


def call(run: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["linearity", str(run), *map(str, arguments)], env={"COLUMNS": "140"})


def report_of(run: Path, *arguments: str | Path) -> dict[str, Any]:
    """What the command writes."""
    result = call(run, *arguments)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads((run / "linearity/linearity.json").read_text())
    return content
