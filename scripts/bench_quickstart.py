"""Runs the quickstart with several seeds, one after the other, and prints what each gained and how long it took.

python scripts/bench_quickstart.py [--seeds 1 2 3] [--output docs/benchmarks/quickstart.json]
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from rich.console import Console
from rich.progress import track
from rich.table import Table

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One whole process, imports and both evaluations included."""
    output_dir = folder / str(seed)
    command = [sys.executable, "-m", "rlvr.cli", "train", str(RECIPE)]
    started = time.perf_counter()
    subprocess.run(
        [*command, f"trainer.seed={seed}", f"trainer.output_dir={output_dir}"], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    (before,), (after,) = (
        json.loads((output_dir / "evaluations" / f"{moment}.json").read_text()) for moment in ("before", "after")
    )
    return {"seed": seed, "seconds": round(seconds, 1), "before": before["estimates"], "after": after["estimates"]}


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, Path(folder)) for seed in track(options.seeds, description="seeds")]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    table = Table("seed", "seconds", "metric", "before [95% interval]", "after [95% interval]", title=machine)
    for each in runs:
        for metric in each["before"]:
            cells = (interval(each["before"][metric]), interval(each["after"][metric]))
            table.add_row(str(each["seed"]), f"{each['seconds']:.0f}", metric, *cells)
    Console(width=110).print(table)
    if options.output:
        versions = {"torch": torch.__version__, "trl": trl.__version__, "transformers": transformers.__version__}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"machine": machine, "versions": versions, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
