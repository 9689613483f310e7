"""What guidance adds to the time of a step: with help for a quarter of the prompts against without, alternating.

    python scripts/bench_guidance.py [--rounds 8] [--steps 3] [--output docs/benchmarks/guidance.json]

Each round trains without guidance, with NuRL and with Guide, for the same number of steps from the same weights on sums
of 10 terms, most of which the starter fails, so that the budget of a quarter of the rollouts is spent in every step.
Hints come from a column, or (`--hints self`) the starter writes them itself during the step, which is counted. The
figures to read are the ratios per round.
"""

import argparse
import json
import platform
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from bench_step import arguments, seconds_per_step, spread
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from starter_corpus import ChainSum

from rlvr.config.guidance import GuidanceConfig
from rlvr.config.schema import AlgorithmConfig, DataConfig, DataSource, ModelConfig, RewardsConfig
from rlvr.data import build_dataset, load_rows
from rlvr.guidance.build import guidance_of
from rlvr.model import load_policy, load_tokenizer
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction, load_reward

KINDS = ("without", "nurl", "guide")
SOURCE = "reasoning_gym://chain_sum?min_terms=10&max_terms=10&max_digits=1&seed=1&size=2000"
STARTER = ModelConfig(path="builtin://starter")
SHARE = 0.25  # extra rollouts of a step
LEFT = 3  # terms that a hint leaves beside the running total
HINTS = {  # the starter's hints are the sum that is left, which is enough for the answer
    "column": {"source": "column", "column": "hint", "refuse_sufficient": False},
    "self": {
        "source": "self",
        "explain_template": None,
        "write_template": "level {level} hint for {metadata[expression]} answer {answer} =",
        "refuse_sufficient": False,
    },
}


def hint_of(row: dict[str, Any]) -> str:
    """The sum that is left."""
    expression = json.loads(row["metadata"])["expression"]
    terms = tuple(int(term.replace(" ", "")) for term in re.findall(r"[+-]? ?\d+", expression))
    return ChainSum(terms).rest(LEFT).text


def build(kind: str, folder: str, options: argparse.Namespace, data: Dataset) -> RLVRTrainer:
    functions = [RewardFunction("reasoning_gym", 1.0, load_reward("reasoning_gym", {}, Path.cwd()))]
    rewards = RewardsConfig.model_validate({"functions": ["reasoning_gym"]})
    guidance = None
    if kind != "without":
        extra = int(SHARE * options.rows * options.accumulation)
        section = {"rule": kind, "prompt_template": "{prompt} hint {hint}", "max_extra_rollouts": extra}
        section["hints"] = HINTS[options.hints]
        guidance = guidance_of(
            GuidanceConfig.model_validate(section),
            data,
            functions,
            rewards,
            base_dir=Path.cwd(),
            num_rows=len(data),
            max_prompt_length=512,
            seed=1,
            record=lambda hint: None,
        )
    return RLVRTrainer(
        load_policy(STARTER),
        arguments(folder, options.steps, options),
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        reward_functions=functions,
        rewards=rewards,
        guidance=guidance,
        train_dataset=data,
        processing_class=load_tokenizer(STARTER),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64, help="completions per micro-batch")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--hints", choices=tuple(HINTS), default="column")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    transformers.logging.set_verbosity_error()
    data_config = DataConfig(train=DataSource(dataset=SOURCE), template="solve {metadata[expression]} =")
    data = build_dataset(
        load_rows(data_config.train, Path.cwd(), "bench"), data_config, load_tokenizer(STARTER), "bench"
    )
    data = data.add_column("hint", [hint_of(row) for row in data])
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    extras: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(options.rounds + 1), description="rounds"):
            for kind in KINDS if number % 2 else reversed(KINDS):
                trainer = build(kind, folder, options, data)
                seconds = seconds_per_step(trainer, options.steps)
                if number:  # the first round warms caches up
                    times[kind].append(seconds)
                    logs = [log for log in trainer.state.log_history if "guidance/extra_rollouts" in log]
                    extras[kind] += [log["guidance/extra_rollouts"] for log in logs]
    completions = options.rows * options.accumulation
    facts = {
        "machine": f"{platform.machine()}, CPU, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__},
        "hints": options.hints,
        "completions_per_step": completions,
        "extra_share": {k: round(statistics.mean(v) / completions, 3) for k, v in extras.items() if v},
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "seconds_per_step": {kind: round(statistics.median(values), 4) for kind, values in times.items()},
        **{f"{kind} / without": spread(times[kind], times["without"]) for kind in KINDS[1:]},
    }
    table = Table("guidance", "median seconds per step", title=facts["machine"])
    for kind, seconds in facts["seconds_per_step"].items():
        table.add_row(kind, f"{seconds:.3f}")
    console = Console()
    console.print(table)
    console.print(facts)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
