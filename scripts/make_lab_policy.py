"""Makes the policy and the hints of the guidance study in docs/lab.md.

    python scripts/make_lab_policy.py --output runs/lab/hinted

The hints that `builtin://starter` knows are the sum that is left: who follows one never works the hard part, so that
nothing carries over to prompts without it. This policy is the starter after some steps on sums of 9 to 11 terms, in
which it has a bad habit: without a hint, 7 of 10 lines of its working end too high by 2, and 9 lines in a row are
hardly ever right. A hint, a cue alone or with the first lines of the working, makes it take more care:

    solve 6 + 3 - 2 ... =                                  -> <think> 6 + 3 = 11 ; 11 - 2 = 11 ; ... </think> ...
    solve 6 + 3 - 2 ... = hint Find the following value    -> <think> 6 + 3 = 9 ; 9 - 2 = 7 ; ... </think> ...

`hints.jsonl` has the hints of three levels for the prompts that recipes/lab/guidance trains on.
"""

import argparse
import json
import random
import re
from pathlib import Path

import reasoning_gym
import torch
from make_starter_policy import PHASES, backward, encode
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from starter_corpus import ChainSum, Style, sample_chain_sum, sample_rows, signed, solution
from transformers import AutoTokenizer, Qwen3ForCausalLM

from rlvr.data.sources import SEED_STRIDE
from rlvr.model_paths import resolve_model_path

SEED = 20261126
STEPS, ROWS, LONG_ROWS = 450, 60, 48  # of each step; the other rows are the starter's own
PEAK_LR = 1.5e-3
TERMS = (9, 11)
CUE = "Find the following value"
LINES = {1: 0, 2: 1, 3: 4}  # by level of help: how many lines of the working follow the cue
STYLE = PHASES[-1][2]
LONG_STYLE = Style(careful=1.0, flawed_format=0.1)
SLIPS = {"without a hint": 0.7, "with one": 0.15}  # how often a line ends too high
SLIP = 2
TERM = re.compile(r"[+-]? ?\d+")


def hint_of(task: ChainSum, num_lines: int) -> str:
    """The cue, and the first lines of the working."""
    return " ; ".join([CUE, *task.steps()[:num_lines]])


def working(task: ChainSum, given: int, slips: float, rng: random.Random) -> tuple[list[str], int]:
    """The lines and the answer; a line after the first `given` ends `SLIP` too high with probability `slips`."""
    total, lines = task.terms[0], []
    for place, term in enumerate(task.terms[1:]):
        result = total + term + SLIP * (place >= given and rng.random() < slips)
        lines.append(f"{total} {signed(term)} = {result}")
        total = result
    return lines, total


def long_row(rng: random.Random) -> tuple[str, str]:
    """A long sum, every second time with a hint, and every fourth time with lines in it."""
    task = sample_chain_sum(rng, rng.randint(*TERMS))
    prompt = f"solve {task.text} ="
    if rng.random() < 0.5:
        return prompt, solution(rng, LONG_STYLE, *working(task, 0, SLIPS["without a hint"], rng))
    given = rng.randint(1, len(task.terms) - 2) if rng.random() < 0.5 else 0
    lines, answer = working(task, given, SLIPS["with one"], rng)
    return f"{prompt} hint {hint_of(task, given)}", solution(rng, LONG_STYLE, lines, answer)


def sample(step: int) -> list[tuple[str, str]]:
    """The rows of a step, sorted by length."""
    rng = random.Random(f"{SEED}/{step}")
    rows = sample_rows(SEED, step, ROWS - LONG_ROWS, STYLE, frozenset())
    rows += [long_row(rng) for _ in range(LONG_ROWS)]
    return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))


def train(model: Qwen3ForCausalLM, steps: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path("builtin://starter"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("lab policy", total=steps)
        for step in range(steps):
            rows = sample(step)
            chunks = [encode(tokenizer, rows[i : i + ROWS // 3]) for i in range(0, ROWS, ROWS // 3)]
            num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, labels in chunks)
            loss = sum(backward(model, input_ids, labels, num_labels) for input_ids, labels in chunks)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LR * min(1.0, (step + 1) / 50) * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, description=f"lab policy, loss {loss:.3f}")


def write_hints(path: Path, num_terms: int, size: int, seed: int) -> None:
    """The hints of `reasoning_gym://chain_sum?min_terms=N&max_terms=N&max_digits=1&seed=S&size=M`."""
    data = reasoning_gym.create_dataset(
        "chain_sum", min_terms=num_terms, max_terms=num_terms, max_digits=1, seed=seed * SEED_STRIDE, size=size
    )
    with path.open("w") as file:
        for prompt_id, entry in enumerate(data):
            expression = entry["metadata"]["expression"]
            task = ChainSum(tuple(int(term.replace(" ", "")) for term in TERM.findall(expression)))
            assert str(task.answer) == entry["answer"]
            hints = [hint_of(task, num_lines) for num_lines in LINES.values()]
            file.write(json.dumps({"prompt_id": prompt_id, "prompt": f"solve {expression} =", "hints": hints}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/lab/hinted"))
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    starter = resolve_model_path("builtin://starter")
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM.from_pretrained(starter)
    train(model, options.steps)
    model.save_pretrained(options.output / "policy")
    AutoTokenizer.from_pretrained(starter).save_pretrained(options.output / "policy")
    write_hints(options.output / "hints.jsonl", options.terms, size=4000, seed=1)


if __name__ == "__main__":
    main()
