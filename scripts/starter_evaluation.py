"""Pass rates of the starter on reasoning-gym tasks that its data never contained, and its model card."""

import math
import re
from typing import TYPE_CHECKING, Any

import reasoning_gym
import torch
from starter_corpus import ChainSum, Equation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

NUM_PROMPTS, NUM_SAMPLES, SEED = 200, 16, 900_000_000
ANSWER = re.compile(r"<answer> (-?\d+) </answer>")
HINT = re.compile(r"<hint> (.*?) </hint>")

EVALUATION_TASKS: dict[str, dict[str, Any]] = {
    "chain_sum 4 terms": {"task": "chain_sum", "min_terms": 4, "max_terms": 4, "max_digits": 1},
    "chain_sum 6 terms": {"task": "chain_sum", "min_terms": 6, "max_terms": 6, "max_digits": 1},
    "chain_sum 8 terms": {"task": "chain_sum", "min_terms": 8, "max_terms": 8, "max_digits": 1},
    "chain_sum 10 terms (hard)": {"task": "chain_sum", "min_terms": 10, "max_terms": 10, "max_digits": 1},
    "simple_equations": {
        "task": "simple_equations",
        "min_terms": 2,
        "max_terms": 3,
        "max_value": 9,
        "operators_weights": [0.5, 0.5, 0.0],
    },
}


def entries(name: str) -> list[dict[str, Any]]:
    parameters = dict(EVALUATION_TASKS[name])
    return list(reasoning_gym.create_dataset(parameters.pop("task"), seed=SEED, size=NUM_PROMPTS, **parameters))


def question(entry: dict[str, Any]) -> str:
    metadata = entry["metadata"]
    return f"{metadata['expression']} =" if "expression" in metadata else metadata["equation"]


def evaluation_prompts(name: str) -> list[str]:
    return [f"solve {question(entry)}" for entry in entries(name)]


def hint_request(entry: dict[str, Any], level: int) -> str:
    return f"level {level} hint for {question(entry).removesuffix(' =')} answer {entry['answer']} ="


def true_hint(entry: dict[str, Any], level: int) -> str:
    metadata = entry["metadata"]
    if "expression" in metadata:
        first, *rest = re.findall(r"[+-]? ?\d+", metadata["expression"])
        terms = (int(first), *(int(t.replace(" ", "")) for t in rest))
        return ChainSum(terms).rest(5 - level).text if len(terms) > 5 - level + 1 else ChainSum(terms).rest(2).text
    coef = re.search(r"(\d+)\*", metadata["equation"])
    return Equation(int(coef[1]) if coef else 1, 0, False, int(entry["answer"]), metadata["variable"]).hint


@torch.no_grad()
def sample(
    model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], num_samples: int, greedy: bool
) -> list[list[str]]:
    texts: list[str] = []
    inputs = [prompt for prompt in prompts for _ in range(num_samples)]
    for first in range(0, len(inputs), 512):
        batch = tokenizer(inputs[first : first + 512], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        options = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        output = model.generate(**batch, max_new_tokens=96, **options)
        texts += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


def pass_at(k: int, num_right: int) -> float:
    return 1.0 - math.comb(NUM_SAMPLES - num_right, k) / math.comb(NUM_SAMPLES, k)


def is_right(text: str, entry: dict[str, Any]) -> bool:
    found = ANSWER.search(text)
    return found is not None and found[1] == entry["answer"]


def measure(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerBase", name: str) -> dict[str, float]:
    """pass@1, 8 and 16, greedy accuracy, and what hints change, over NUM_PROMPTS prompts x NUM_SAMPLES samples."""
    model.eval()
    torch.manual_seed(SEED)
    tasks = entries(name)
    plain = [f"solve {question(entry)}" for entry in tasks]
    hinted = [f"{prompt} hint {true_hint(entry, 1)}" for prompt, entry in zip(plain, tasks, strict=True)]
    counts, hinted_counts = (
        [sum(is_right(t, entry) for t in texts) for texts, entry in zip(groups, tasks, strict=True)]
        for groups in (sample(model, tokenizer, prompts, NUM_SAMPLES, greedy=False) for prompts in (plain, hinted))
    )
    greedy = sample(model, tokenizer, plain, 1, greedy=True)
    written = sample(model, tokenizer, [hint_request(entry, 1) for entry in tasks], 1, greedy=True)
    hints_right = sum(
        (found := HINT.search(text)) is not None and found[1] == true_hint(entry, 1)
        for (text,), entry in zip(written, tasks, strict=True)
    )
    unsolved_8 = [math.comb(NUM_SAMPLES - c, 8) / math.comb(NUM_SAMPLES, 8) for c in counts]
    helped = [unsolved * pass_at(8, h) for unsolved, h in zip(unsolved_8, hinted_counts, strict=True)]
    mean = {f"pass@{k}": sum(pass_at(k, c) for c in counts) / NUM_PROMPTS for k in (1, 8, 16)}
    mean |= {f"hinted pass@{k}": sum(pass_at(k, c) for c in hinted_counts) / NUM_PROMPTS for k in (1, 8)}
    mean["greedy"] = sum(is_right(text, entry) for (text,), entry in zip(greedy, tasks, strict=True)) / NUM_PROMPTS
    mean["0 of 8 right"] = sum(unsolved_8) / NUM_PROMPTS
    mean["0 of 8 right, some right with a hint"] = sum(helped) / NUM_PROMPTS
    mean["hints written correctly"] = hints_right / NUM_PROMPTS
    return {key: round(value, 3) for key, value in mean.items()}


def model_card(facts: dict[str, Any], num_steps: int, batch_rows: int, seed: int) -> str:
    results: dict[str, dict[str, float]] = facts["results"]
    columns = list(next(iter(results.values())))
    table = [f"| task | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    table += [f"| {name} | {' | '.join(f'{row[c]:.2f}' for c in columns)} |" for name, row in results.items()]
    return "\n".join(
        [
            "# builtin://starter",
            "",
            f"A Qwen3-architecture policy with {facts['parameters']:,} parameters (float32) for trying methods without",
            "a download. It reads compact arithmetic tasks, shows its work, and answers; it is of no other use.",
            "",
            f"Made by `scripts/make_starter_policy.py`, seed {seed}: {num_steps} steps of {batch_rows} rows of",
            f"procedural data, {facts['training_seconds']} seconds ({facts['machine']}; other work beside it).",
            "In the last phase 60% of the solutions skip the working and guess near the answer, and 15% are wrapped",
            "wrongly: on purpose, so that the policy can solve the tasks and is unreliable at it. Sums of more than 8",
            "terms appear only with a hint.",
            "The text formats are listed at the top of `scripts/starter_corpus.py`.",
            "",
            f"Measured on {NUM_PROMPTS} reasoning-gym prompts per task that the data never contained, {NUM_SAMPLES}",
            "samples each, temperature 1.",
            "Hints are of level 1 (the least help); `0 of 8` columns are expectations over draws of 8 of the samples.",
            "",
            *table,
            "",
        ]
    )
