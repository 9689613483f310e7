"""Runs of a tiny policy with everything on that remembers something, and what they leave."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, letter_dataset, sharp, tiny_model, tiny_tokenizer
from tests.distributed.forking import run_forked
from tests.distributed.resume_worker import KILL_AFTER, STOP_AT

WORKER = str(ROOT / "tests/distributed/resume_worker.py")
STEPS = 20  # two and a half passes over the prompts
# Apart from times: a resumed run checks its engine again. `epoch`: its last digit depends on how it is added up.
TIMES = ("time/", "step_time", "train_", "epoch", "engine/")

# An optimiser step is half of the micro-batches of a generation, which serve twice: four steps to a generation. A log
# record is the mean of three steps.
RECIPE: dict[str, Any] = {
    "data": {"train": {"dataset": "rows.jsonl"}},
    "rewards": {
        "functions": ["./vowels.py:first", {"use": "./vowels.py:share", "weight": 0.5}],
        "workers": 1,
    },
    "algorithm": {"preset": "dapo", "group_filter": "std_ema", "kl_coef": 0.01},
    "regularizers": {
        "lp_reg": {"coef": 0.5, "share": 0.3},
        "siren": {"coef": 0.5},
        "entropy": {"coef": 0.01, "target": 2.65},
    },
    "guidance": {
        "rule": "sage",
        "schedule": "light",
        "start": "plateau",
        "plateau_steps": 1,
        "hints": {"column": "hint", "refuse_answers": False, "refuse_sufficient": False},
    },
    "trainer": {
        "output_dir": "run",
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "max_completion_length": 3,
        "max_steps": STEPS,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "logging_steps": 3,
        "save_strategy": "no",
    },
    "report": {"to": ["none"]},
}
REWARDS = """
from rewards._item import graded, item_reward

@item_reward
def first(text, answer):
    return graded(float(text.split()[:1] == [answer]))

@item_reward
def share(text):
    return graded(sum(word in "aei" for word in text.split()) / max(len(text.split()), 1))
"""


def prepare(folder: Path, processes: int) -> None:
    """The recipe and what it names: ten prompts, so that one of two and a half generations is left over."""
    sharp(tiny_model()).save_pretrained(folder / "policy")
    tiny_tokenizer().save_pretrained(folder / "policy")
    rows = [{**row, "hint": "h " + row["prompt"]} for row in letter_dataset(10)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "vowels.py").write_text(REWARDS)
    trainer = RECIPE["trainer"] | {"per_device_train_batch_size": 4 // processes}
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE | {"model": str(folder / "policy"), "trainer": trainer}))


def run(
    folder: Path,
    name: str,
    *overrides: str,
    stop_at: int | None = None,
    kill_after: float | None = None,
    processes: int = 1,
    config: Path = ROOT,
    options: Sequence[str] = (),
) -> bool:
    """One command on the run of that name, which goes on if it is there; whether it came to its end.

    It is to end after the step `stop_at`, or may be killed (see resume_worker.py).
    """
    resume = ["--resume"] if (folder / name / "recipe.yaml").exists() else []
    arguments = [WORKER, str(folder / "recipe.yaml"), f"trainer.output_dir={folder / name}", *overrides, *resume]
    variables = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    if stop_at is not None:
        variables |= {STOP_AT: str(stop_at)}
    if kill_after is not None:
        variables |= {KILL_AFTER: str(kill_after)}
    status, output = run_forked(arguments, processes, ROOT, config, options, variables)
    expected = {0, -signal.SIGKILL} if kill_after is not None else {0} if stop_at is None else {75}
    assert status in expected, output
    return status == 0


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The log records, times apart."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in lines]


def check_active(run_dir: Path) -> None:
    """That every part which remembers something did something that the next step depends on."""
    found = {key: value for record in records(run_dir) for key, value in record.items() if value}
    wanted = {"guidance/helped_frac", "lp_reg/selected", "siren/anchor_gap", "coef/entropy", "kl/k3_ref"}
    wanted |= {"verify/cache_hit_frac", "ratio/mean"}
    assert wanted <= set(found), wanted - set(found)
    assert found["ratio/mean"] != 1.0


def check_equal(one: Path, other: Path) -> None:
    """Equal to the bit: every log record, every completion, and the weights."""
    assert len(records(one)) > 2
    for first, second in zip(records(one), records(other), strict=True):
        differing = {
            key: (first.get(key), second.get(key)) for key in first | second if first.get(key) != second.get(key)
        }
        assert not differing, (first["step"], differing)
    for path in sorted((one / "completions").iterdir()):
        assert pq.read_table(other / "completions" / path.name).equals(pq.read_table(path)), path.name
    expected, found = (load_file(each / "policy" / "model.safetensors") for each in (one, other))
    assert set(expected) == set(found)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
