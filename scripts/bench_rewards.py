"""Time to judge 1,000 mathematical answers, beside math-verify called one after the other and TRL's accuracy_reward.

    python scripts/bench_rewards.py [--rounds 3] [--items 1000] [--cap 120] [--output docs/benchmarks/rewards.json]

Five sets: short numbers; symbolic answers; the same with 1 in 100 replaced by a hostile one of any kind, by one with a
number too large to compute, by one that only a limit on time stops. Every measurement is a process of its own, ended
after `--cap` seconds, and the contestants alternate. Start-up and 20 answers to warm up are not counted. All answers of
all rounds are distinct, so nothing is found in a cache (`cached` says so). Ours has 2 workers, a deadline of 5 s, as
math-verify has, and 0.5 s of processor time. The last figures are the cost of the workers for 64 completions of a
reward that needs next to no time, and the share of verification in a training step of the starter.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WORKERS, TIMEOUT_S, CPU_S, MEMORY_MB = 2, 5.0, 0.5, 1024  # the defaults of a recipe, on two cores
CONTESTANTS = ("rlvr", "math_verify", "trl")
SETS = ("numbers", "symbolic", "hostile", "too large", "endless")
WARM_UP = 20
Pair = tuple[str, str]  # text of a completion, gold answer


# ---- the answers ----------------------------------------------------------------------------------------------------


def number_pair(rng: random.Random, index: int) -> Pair:
    value = 1000 * rng.randrange(10**6) + index
    gold, same = rng.choice(
        [
            (f"{value}", f"{value:,}"),
            (f"{value}", f"{value}.0"),
            (f"{value}/1000", f"\\frac{{{value}}}{{1000}}"),
            (f"{value / 1000}", f"{value / 1000}"),
        ]
    )
    given = same if rng.random() < 0.5 else f"{value + rng.randint(1, 99)}"
    return f"We add the two and get \\boxed{{{given}}}.", gold


def symbolic_pair(rng: random.Random, index: int) -> Pair:
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), 1000 * rng.randint(1, 99) + index
    wrong = rng.choice([0, 0, 1])
    gold, given = rng.choice(
        [
            (f"\\frac{{{c}\\sqrt{{{a}}}}}{{{b}}}", f"\\frac{{{c + wrong}}}{{{b}}}\\sqrt{{{a}}}"),
            (f"{c}+{a}\\pi", f"{a}\\pi+{c + wrong}"),
            (f"(x+{a})(x+{c})", f"x^2+{a + c}x+{a * c + wrong}"),
            (f"\\{{{a},{b},{c}\\}}", f"\\{{{c + wrong},{b},{a}\\}}"),
            (f"({a},{c}]", f"({a},{c + wrong}]"),
            (f"{a}x+{c}y", f"{c + wrong}y+{a}x"),
            (f"\\sqrt{{{a * a * c}}}", f"{a}\\sqrt{{{c + wrong}}}"),
            (f"\\frac{{{c}}}{{{a}}}+\\frac{{1}}{{{b}}}", f"\\frac{{{c * b + a + wrong}}}{{{a * b}}}"),
        ]
    )
    return f"Hence the answer is \\boxed{{{given}}}.", gold


def too_large(n: int, m: int) -> list[str]:
    return [
        f"{n}^{{{n}^{{{n}^{{{m}}}}}}}",
        f"\\dfrac{{5^{{\\left(5^{{\\left(5^{{\\left(5^5\\right)}}\\right)}} - {m}\\right)}} - 5}}{{16}}",
        f"7^{{9^{{9}}}}+{m}",
        f"(10^8+{m})!",
        f"9^{{9^{{9}}}}-8^{{9^{{9}}}}\\cdot 9^{{9^{{8}}}}+{m}x",
        f"x=9^{{9^{{9}}}}-9^{{9^{{9}}}}+{m}",
    ]


def endless(n: int, m: int) -> list[str]:
    return [
        f"\\int_0^1 e^{{-x^2}}\\sin(x^{n})\\ln({m}+x) dx",
        f"\\sum_{{n=1}}^{{10^9}} \\frac{{{m}}}{{n^{n}}}",
        f"(x+y+z+w)^{{{300 + m}}}",
        f"{n}^{{10^9}} \\mod {m}",
        "\\sin(\\cos(" * 20 + f"{m}x" + "))" * 20,
        "(" * 2000 + f"{m}" + ")" * 2000,
    ]


HOSTILE = {
    "too large": too_large,
    "endless": endless,
    "hostile": lambda n, m: [*too_large(n, m), *endless(n, m)],
}


def pairs_of(name: str, count: int, seed: int) -> list[Pair]:
    """Distinct questions of one set; the hostile ones stand in the place of every 100th symbolic one."""
    rng = random.Random(f"{'numbers' if name == 'numbers' else 'symbolic'} {seed}")
    make = number_pair if name == "numbers" else symbolic_pair
    pairs = [make(rng, index) for index in range(count)]
    if name in HOSTILE:
        for index in range(50, count, 100):
            made = rng.choice(HOSTILE[name](rng.randint(3, 9), index + 2))
            pairs[index] = f"Hence the answer is \\boxed{{{made}}}.", f"{index + 2}"
    return pairs


# ---- one measurement ------------------------------------------------------------------------------------------------


def ours(warm_up: Sequence[Pair], pairs: Sequence[Pair]) -> dict[str, Any]:
    from rewards.math_answer import math
    from rlvr.verification.judging import Judge
    from rlvr.verification.tasks import Limits

    judge = Judge(WORKERS, Limits(TIMEOUT_S, CPU_S, MEMORY_MB))
    judge.judge(math, {}, [(text, {"answer": gold}) for text, gold in warm_up])
    started = time.perf_counter()
    judged = judge.judge(math, {}, [(text, {"answer": gold}) for text, gold in pairs])
    seconds = time.perf_counter() - started
    judge.close()
    verdicts = [each.judgement.value for each in judged]
    return {"seconds": seconds, "verdicts": verdicts, "cached": sum(each.cached for each in judged)}


def by_math_verify(warm_up: Sequence[Pair], pairs: Sequence[Pair]) -> dict[str, Any]:
    """With the extraction that our reward uses, and math-verify's own time limits of 5 s."""
    from math_verify import parse, verify

    from rewards.math_answer import EXTRACTION

    def score(text: str, gold: str) -> float | None:
        expressions = parse(f"\\boxed{{{gold}}}", EXTRACTION, fallback_mode="no_fallback")
        return float(verify(expressions, parse(text, EXTRACTION, fallback_mode="no_fallback"))) if expressions else None

    for pair in warm_up:
        score(*pair)
    started = time.perf_counter()
    verdicts = [score(*pair) for pair in pairs]
    return {"seconds": time.perf_counter() - started, "verdicts": verdicts}


def by_trl(warm_up: Sequence[Pair], pairs: Sequence[Pair]) -> dict[str, Any]:
    from trl.rewards import accuracy_reward

    def score(of: Sequence[Pair]) -> list[float | None]:
        completions = [[{"role": "assistant", "content": text}] for text, _ in of]
        return accuracy_reward(completions, [f"${gold}$" for _, gold in of])

    score(warm_up)
    started = time.perf_counter()
    verdicts = score(pairs)
    return {"seconds": time.perf_counter() - started, "verdicts": verdicts}


JUDGES = {"rlvr": ours, "math_verify": by_math_verify, "trl": by_trl}


def measured(contestant: str, name: str, count: int, seed: int, cap: float) -> dict[str, Any] | None:
    """The measurement in a process of its own; None when it was not done within `cap` seconds."""
    command = [sys.executable, __file__, "--measure", contestant, name, str(count), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            output, _ = process.communicate(timeout=cap)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    if process.returncode:
        raise RuntimeError(f"{contestant} failed on {name}; run: {' '.join(command)}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


# ---- what the workers cost ------------------------------------------------------------------------------------------


def overhead(rounds: int) -> dict[str, float]:
    """Seconds per call, medians: 64 completions of `numeric`, called plainly, with workers, and from the cache."""
    from rewards.numeric import numeric
    from rlvr.verification.judging import Judge
    from rlvr.verification.tasks import Limits

    judge = Judge(WORKERS, Limits(TIMEOUT_S, CPU_S, MEMORY_MB))
    times: dict[str, list[float]] = {"plain": [], "workers": [], "cached": []}
    for index in range(rounds + 1):
        texts = [f"<answer>{index}{place:02d}</answer>" for place in range(64)]
        items = [(text, {"answer": "7"}) for text in texts]
        for name in times:
            started = time.perf_counter()
            if name == "plain":
                numeric(texts, answer=["7"] * 64)
            else:
                judge.judge(numeric, {}, items)
            times[name].append(time.perf_counter() - started)
    judge.close()
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def share_of_a_step(steps: int) -> dict[str, float]:
    """Medians of training the starter on 64 completions a step: seconds of a step, and of verification within it.

    The reward is reasoning-gym's scorer, asked through the workers; the first step, which starts them, is left out.
    """
    import bench_step

    from rlvr.config.schema import DataConfig, DataSource, ModelConfig
    from rlvr.data import build_dataset, load_rows
    from rlvr.model import load_tokenizer
    from rlvr.verification import load_reward

    options = argparse.Namespace(model="builtin://starter", rows=64, accumulation=1)
    config = DataConfig(train=DataSource(dataset=bench_step.SOURCE), template="solve {metadata[expression]} =")
    rows = load_rows(config.train, Path.cwd(), "bench")
    data = build_dataset(rows, config, load_tokenizer(ModelConfig(path=options.model)), "bench")
    with tempfile.TemporaryDirectory() as folder:
        reward = load_reward("reasoning_gym", {}, Path.cwd())
        trainer = bench_step.build("rlvr", folder, steps, options, data, reward)
        bench_step.seconds_per_step(trainer, steps)
    logs = [log for log in trainer.state.log_history if "time/verify_s" in log][1:]
    names = {"step": "step_time", "verify": "time/verify_s"}
    return {name: statistics.median(log[key] for log in logs) for name, key in names.items()}


# ---- all of them ----------------------------------------------------------------------------------------------------


def agreement(ours_result: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    if theirs is None:
        return "-"
    pairs = list(zip(ours_result["verdicts"], theirs["verdicts"], strict=True))
    return f"{sum(a == b for a, b in pairs)}/{len(pairs)}"


def run(rounds: int, count: int, cap: float, console: Console) -> list[dict[str, Any]]:
    """One record per set, round and contestant; who ran into the cap in one round is not asked again."""
    records: list[dict[str, Any]] = []
    capped: set[tuple[str, str]] = set()
    for seed in range(rounds):
        for name in SETS:
            first: dict[str, Any] | None = None
            for contestant in CONTESTANTS:
                if (contestant, name) in capped:
                    continue
                result = measured(contestant, name, count, seed, cap)
                first = first or result
                record = {"set": name, "round": seed, "contestant": contestant, "seconds": None}
                if result is None:
                    capped.add((contestant, name))
                else:
                    record |= {"seconds": result["seconds"], "cached": result.get("cached")}
                    record["agreement with rlvr"] = agreement(first, result) if first else "-"
                records.append(record)
                console.print(record)
    return records


def seconds_of(records: Sequence[dict[str, Any]], name: str, contestant: str) -> float | None:
    """The median; None when it ran into the cap."""
    values = [r["seconds"] for r in records if (r["set"], r["contestant"]) == (name, contestant)]
    return None if None in values else statistics.median(values)


def table_of(records: Sequence[dict[str, Any]], count: int, rounds: int, cap: float) -> Table:
    table = Table(title=f"seconds for {count} answers, median of {rounds} rounds")
    for column in ("set", *CONTESTANTS, "math_verify / rlvr", "trl / rlvr", "verdicts as math_verify"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name in SETS:
        seconds = [seconds_of(records, name, contestant) for contestant in CONTESTANTS]
        own = seconds[0]
        cells = [f">{cap:g}" if each is None else f"{each:.2f}" for each in seconds]
        ratios = ["-" if own is None else f"{'>' if e is None else ''}{(e or cap) / own:.1f}" for e in seconds]
        agreed = [
            r.get("agreement with rlvr", "-") for r in records if (r["set"], r["contestant"]) == (name, "math_verify")
        ]
        table.add_row(name, *cells, *ratios[1:], " ".join(agreed))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--cap", type=float, default=120.0, help="seconds for one measurement")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        contestant, name, count, seed = arguments.measure
        warm_up = pairs_of("numbers" if name == "numbers" else "symbolic", WARM_UP, seed=10_000 + int(seed))
        print(json.dumps(JUDGES[contestant](warm_up, pairs_of(name, int(count), int(seed)))))
        return
    console = Console()
    records = run(arguments.rounds, arguments.items, arguments.cap, console)
    console.print(table_of(records, arguments.items, arguments.rounds, arguments.cap))
    costs = overhead(rounds=50)
    console.print({f"64 completions, {name}, ms": round(1000 * value, 2) for name, value in costs.items()})
    step = share_of_a_step(steps=20)
    console.print(
        f"a training step of 64 completions: {step['step']:.3f} s; verification in it: {step['verify']:.4f} s"
    )
    if arguments.output:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
        }
        packages = ("math-verify", "latex2sympy2_extended", "sympy", "trl")
        content = {
            "command": f"python scripts/bench_rewards.py --rounds {arguments.rounds} --items {arguments.items}",
            "machine": machine,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "settings": {
                "workers": WORKERS,
                "timeout_s": TIMEOUT_S,
                "cpu_s": CPU_S,
                "memory_mb": MEMORY_MB,
                "cap_s": arguments.cap,
            },
            "cache": "all questions are distinct, none was found in it",
            "median_seconds": {n: {c: seconds_of(records, n, c) for c in CONTESTANTS} for n in SETS},
            "overhead_seconds_64": costs,
            "training_step_seconds_64": step,
            "rounds": records,
        }
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
