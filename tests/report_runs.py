"""Made-up run directories for the tests and the benchmark of the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rlvr.config.schema import EvaluationConfig
from rlvr.evaluation.evaluate import summarise
from rlvr.evaluation.records import PromptRecord

# A run in which nothing is wrong, at a share of its way between 0 and 1.
HEALTHY: Mapping[str, Callable[[float], float]] = {
    "reward/mean": lambda share: 0.3 + 0.4 * share,
    "reward/std": lambda share: 0.5,
    "outcome/pass_rate": lambda share: 0.3 + 0.4 * share,
    "outcome/pass_at_n": lambda share: 0.8 + 0.1 * share,
    "outcome/maj_at_n": lambda share: 0.4 + 0.4 * share,
    "outcome/unscorable_frac": lambda share: 0.0,
    "groups/solved_frac": lambda share: 0.1 + 0.2 * share,
    "groups/unsolved_frac": lambda share: 0.2 - 0.1 * share,
    "groups/equal_reward_frac": lambda share: 0.3,
    "reward/exact/mean": lambda share: 0.3 + 0.4 * share,
    "reward/exact/std": lambda share: 0.5,
    "reward/form/mean": lambda share: 0.8 + 0.1 * share,
    "reward/form/std": lambda share: 0.3,
    "entropy/mean_token": lambda share: 0.6 - 0.2 * share,
    "completions/mean_length": lambda share: 100 + 30 * share,
    "completions/max_length": lambda share: 200.0,
    "completions/min_length": lambda share: 10.0,
    "completions/truncated_frac": lambda share: 0.02,
    "verify/timeout_frac": lambda share: 0.0,
    "verify/error_frac": lambda share: 0.0,
    "verify/no_answer_frac": lambda share: 0.05,
    "verify/cache_hit_frac": lambda share: 0.3,
    "clip/low_frac": lambda share: 0.01,
    "clip/high_frac": lambda share: 0.02,
    "ratio/mean": lambda share: 1.0,
    "kl/k1_old": lambda share: 0.001,
    "advantage/abs_mean": lambda share: 0.7,
    "advantage/zero_frac": lambda share: 0.3,
    "grad_norm": lambda share: 0.4,
    "loss": lambda share: 0.01,
    "loss/policy": lambda share: 0.01,
    "learning_rate": lambda share: 1e-5,
    "num_tokens": lambda share: 1e6 * share,
    "tokens/num_loss": lambda share: 5000.0,
    "time/rollout_s": lambda share: 3.0,
    "time/verify_s": lambda share: 0.5,
    "step_time": lambda share: 5.0,
}
FEW = {"outcome/pass_rate": HEALTHY["outcome/pass_rate"]}  # for a page that is quickly built
SUMMARY = {"train_runtime": 12.5, "train_loss": 0.01}
RECIPE: Mapping[str, Any] = {
    "model": {"path": "builtin://starter"},
    "data": {"train": {"dataset": "rows.jsonl"}, "template": None},
    "rewards": {"functions": [{"use": "exact", "weight": 1.0}, {"use": "format_tags", "name": "form", "weight": 0.2}]},
    "algorithm": {"preset": "dapo", "clip_high": 0.28},
    "regularizers": {"entropy": None},
    "guidance": None,
    "extrapolation": None,
    "trainer": {"max_steps": 40, "learning_rate": 1e-5, "num_generations": 8},
}
FACTS: Mapping[str, Any] = {
    "command": ["rlvr", "train", "recipe.yaml"],
    "machine": "Linux x86_64",
    "num_processes": 1,
    "seed": 7,
    "versions": {"torch": "2.13.0"},
}


def write_run(
    folder: Path,
    *,
    num_steps: int = 40,
    metrics: Mapping[str, Callable[[float], Any]] | None = None,
    healthy: Mapping[str, Callable[[float], Any]] = HEALTHY,
    recipe: Mapping[str, Any] | None = None,
    evaluations: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    is_finished: bool = True,
) -> Path:
    """A run directory without completions; `metrics` replace healthy ones, a value of `...` is not logged."""
    folder.mkdir(parents=True, exist_ok=True)
    curves = {**healthy, **(metrics or {})}
    lines = []
    for step in range(1, num_steps + 1):
        values = {name: curve((step - 1) / max(1, num_steps - 1)) for name, curve in curves.items()}
        lines.append({"step": step} | {name: value for name, value in values.items() if value is not ...})
    if is_finished:
        lines.append({"step": num_steps, **SUMMARY})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(dict(RECIPE if recipe is None else recipe), sort_keys=False))
    (folder / "run.json").write_text(json.dumps(FACTS))
    for name, results in (evaluations or {}).items():
        (folder / "evaluations").mkdir(exist_ok=True)
        (folder / "evaluations" / f"{name}.json").write_text(json.dumps(list(results)))
    return folder


def evaluated(name: str, role: str = "test", **estimates: tuple[float, float, float]) -> dict[str, Any]:
    """A result; estimates by metric with `_at_` for @, each (value, low, high)."""
    return {
        "name": name,
        "num_prompts": 100,
        "num_samples": 16,
        "num_unscored": 0,
        "estimates": {
            metric.replace("_at_", "@"): dict(zip(("value", "low", "high"), each, strict=True))
            for metric, each in estimates.items()
        },
        "mean_length": 20.0,
        "truncated_frac": 0.0,
        "mean_reward": 0.5,
        "role": role,
    }


def measured(name: str, samples: Sequence[str], role: Literal["test", "validation"] = "test") -> dict[str, Any]:
    """The result of an evaluation, from a text per prompt of samples: 1 is right, 0 wrong, - without a verdict."""
    outcomes = {"1": 1.0, "0": 0.0, "-": None}
    records = [
        PromptRecord(place, tuple(outcomes[each] for each in drawn), None, (None,) * len(drawn), (9,) * len(drawn), 0)
        for place, drawn in enumerate(samples)
    ]
    size = len(samples[0])
    config = EvaluationConfig(num_samples=size, k=sorted({1, size}), greedy=False)
    keys = {place: f"key {place}" for place in range(len(samples))}
    return summarise(name, records, config, role, keys).to_json()


def write_completions(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """One parquet file; every row has the columns of the first."""
    (folder / "completions").mkdir(parents=True, exist_ok=True)
    table = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(table), folder / "completions" / f"step-{step:06d}.parquet")


def completion(text: str, outcome: float | None = 1.0, **others: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": 1,
        "prompt_id": 0,
        "prompt": "What is 2 + 2?",
        "completion": text,
        "outcome": outcome,
        "reward": outcome,
        "advantage": 0.0,
        "num_tokens": len(text.split()),
        "truncated": False,
        "hint": None,
        "reward/exact": outcome,
    }
    return row | others


def write_large_run(folder: Path, num_steps: int, per_step: int, num_words: int) -> Path:
    """Completions of random sums and words, about as hard to compress as reasoning is."""
    random = np.random.default_rng(0)

    def noisy(curve: Callable[[float], float]) -> Callable[[float], float]:
        return lambda share: curve(share) * float(1 + 0.1 * random.standard_normal())

    write_run(folder, num_steps=num_steps, metrics={name: noisy(curve) for name, curve in HEALTHY.items()})
    words = np.array(["".join(random.choice(list("etaoinshrdlu"), size=random.integers(2, 9))) for _ in range(3000)])
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    for step in range(1, num_steps + 1):
        texts = words[random.choice(len(words), size=(per_step, num_words), p=weights)]
        outcomes = random.random(per_step) < 0.3 + 0.4 * step / num_steps
        rows = [
            completion(
                " ".join(text),
                float(outcome),
                step=step,
                prompt=f"Problem {step * per_step + index // 8}: " + " ".join(text[:12]),
                token_text=[f"{word} " for word in text] if index < 2 else None,
                token_logprob=(-random.random(num_words)).tolist() if index < 2 else None,
                token_entropy=random.random(num_words).tolist() if index < 2 else None,
            )
            for index, (text, outcome) in enumerate(zip(texts, outcomes, strict=True))
        ]
        write_completions(folder, step, rows)
    return folder
