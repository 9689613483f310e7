"""Steps per second of two DDP processes on two cores against one process, a thread each: alternating in one run.

    python scripts/bench_ddp.py [--rounds 5] [--steps 4] [--output docs/benchmarks/ddp.json]

Both train the starter on the same prompts with the same number of completions in a step and in a micro-batch: one
process takes all micro-batches in turn, each of two takes half of them. The two are started by the accelerate launcher
with recipes/accelerate/cpu2.yaml. Steps are timed inside the run, from the end of one to the end of the next, so that
neither the start of the processes nor the first step counts. The figure to read is the ratio per round; 2 would be
perfect. Needs two cores with nothing else on them.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "recipes" / "accelerate" / "cpu2.yaml"


def work(output: Path, options: argparse.Namespace) -> None:
    """One process of a run: trains, and the first writes the moments at which steps ended."""
    import torch
    import transformers
    from bench_step import SOURCE, arguments
    from transformers import PrinterCallback, TrainerCallback

    from rlvr.config.schema import AlgorithmConfig, DataConfig, DataSource, ModelConfig, RewardsConfig
    from rlvr.data import build_dataset, load_rows
    from rlvr.model import load_policy, load_tokenizer
    from rlvr.trainer import RLVRTrainer
    from rlvr.verification import RewardFunction, load_reward

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    ends: list[float] = []
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    data_config = DataConfig(train=DataSource(dataset=SOURCE), template="solve {metadata[expression]} =")
    rows = load_rows(data_config.train, Path.cwd(), "bench")
    model = ModelConfig(path=options.model)
    tokenizer = load_tokenizer(model)
    settings = arguments(str(output.parent), options.steps, options)
    settings.logging_steps = 1
    trainer = RLVRTrainer(
        load_policy(model),
        settings,
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        reward_functions=[RewardFunction("reasoning_gym", 1.0, load_reward("reasoning_gym", {}, Path.cwd()))],
        # Judged in the process itself: workers of its own would be a second thread for the one.
        rewards=RewardsConfig.model_validate({"functions": ["reasoning_gym"], "workers": 0}),
        train_dataset=build_dataset(rows, data_config, tokenizer, "bench"),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    trainer.train()
    if trainer.accelerator.is_main_process:
        seconds = [later - earlier for earlier, later in pairwise(ends)]
        lengths = [log["completions/mean_length"] for log in trainer.state.log_history if "loss" in log]
        facts = {"processes": trainer.accelerator.num_processes, "seconds": seconds, "mean_length": lengths}
        output.write_text(json.dumps(facts))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(processes: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The moments of a run in its own processes."""
    output = folder / "times.json"
    script = [str(Path(__file__)), "--worker", str(output), "--model", options.model, "--steps", str(options.steps)]
    script += ["--rows", str(options.rows), "--accumulation", str(options.accumulation // processes)]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", str(processes)]
    command = [*launcher, "--main_process_port", str(free_port()), *script] if processes > 1 else script
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    environment = os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    facts: dict[str, Any] = json.loads(output.read_text())
    output.unlink()
    assert facts["processes"] == processes
    return facts


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin://starter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a run; the first is not counted")
    parser.add_argument("--rows", type=int, default=64, help="completions per micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step, over both processes")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2 or (options.accumulation % 2 and not options.worker):
        parser.error("--steps must be 2 or more, and --accumulation even")
    return options


def main() -> None:
    options = parsed()
    if options.worker:
        work(options.worker, options)
        return
    medians: dict[int, list[float]] = {1: [], 2: []}
    lengths: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in track(range(options.rounds), description="rounds"):
            for processes in (1, 2) if number % 2 else (2, 1):
                facts = run(processes, Path(folder), options)
                medians[processes].append(statistics.median(facts["seconds"]))
                lengths[processes] += facts["mean_length"]

    ratios = [one / two for one, two in zip(medians[1], medians[2], strict=True)]
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": options.model,
        "completions_per_step": options.rows * options.accumulation,
        "micro_batch": options.rows,
        "rounds": options.rounds,
        "steps_per_round": options.steps - 1,
        "seconds_per_step": {str(count): round(statistics.median(each), 4) for count, each in medians.items()},
        "mean_completion_length": {str(count): round(statistics.mean(each), 2) for count, each in lengths.items()},
        "two processes / one": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
    }
    ratio = facts["two processes / one"]
    console = Console()
    console.print(
        f"{facts['machine']}: {facts['seconds_per_step']['1']} s a step by one process, "
        f"{facts['seconds_per_step']['2']} s by two"
    )
    console.print(f"throughput of two processes / one: median {ratio['median']}, {ratio['min']} to {ratio['max']}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
