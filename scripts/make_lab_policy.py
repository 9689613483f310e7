"""Makes the policy and the hints of the guidance study in docs/lab.md.

    python scripts/make_lab_policy.py --output runs/lab/hinted

The hints that `builtin://starter` knows are the sum that is left: who follows one never works the hard part, so that
nothing carries over to prompts without it. This policy is the starter after some steps on hints of another kind, the
first lines of the working:

    solve 6 + 3 - 2 + 4 = hint 6 + 3 = 9 ; 9 - 2 = 7    -> <think> 6 + 3 = 9 ; 9 - 2 = 7 ; 7 + 4 = 11 </think> ...

It guesses at sums of 9 and more terms unless it has a hint, so that it fails at what it could do. Level L of 3 gives
the first 3 L - 2 lines. `hints.jsonl` has all levels for the prompts that recipes/lab/guidance trains on.
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
from starter_corpus import ChainSum, Style, sample_chain_sum, sample_rows, solution
from transformers import AutoTokenizer, Qwen3ForCausalLM

from rlvr.data.sources import SEED_STRIDE
from rlvr.model import resolve_model_path

SEED = 20261126
STEPS, ROWS, HINTED_ROWS, LONG_ROWS = 450, 60, 36, 12
PEAK_LR = 1.5e-3
HINTED_TERMS = (6, 11)
LEVELS = (1, 2, 3)
STYLE = PHASES[-1][2]
HINTED_STYLE = Style(careful=0.85, flawed_format=0.1)  # who has the first lines goes on with them
LONG_TERMS, LONG_STYLE = (9, 11), Style(careful=0.0, flawed_format=0.15)  # without a hint, long sums are guessed at
TERM = re.compile(r"[+-]? ?\d+")


def worked_hint(task: ChainSum, num_lines: int) -> str:
    """The first lines of the working."""
    return " ; ".join(task.steps()[:num_lines])


def hinted_row(rng: random.Random, style: Style) -> tuple[str, str]:
    task = sample_chain_sum(rng, rng.randint(*HINTED_TERMS))
    hint = worked_hint(task, rng.randint(1, len(task.terms) - 2))
    return f"solve {task.text} = hint {hint}", solution(rng, style, task.steps(), task.answer)


def long_row(rng: random.Random) -> tuple[str, str]:
    task = sample_chain_sum(rng, rng.randint(*LONG_TERMS))
    return f"solve {task.text} =", solution(rng, LONG_STYLE, task.steps(), task.answer)


def train(model: Qwen3ForCausalLM, steps: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model_path("builtin://starter"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("lab policy", total=steps)
        for step in range(steps):
            rng = random.Random(f"{SEED}/{step}")
            rows = sample_rows(SEED, step, ROWS - HINTED_ROWS - LONG_ROWS, STYLE, frozenset())
            rows += [hinted_row(rng, HINTED_STYLE) for _ in range(HINTED_ROWS)]
            rows += [long_row(rng) for _ in range(LONG_ROWS)]
            rows.sort(key=lambda row: len(row[0]) + len(row[1]))
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
            hints = [worked_hint(task, 3 * level - 2) for level in LEVELS]
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
