"""Makes `builtin://starter`: a one-million-parameter Qwen3 policy warm-started on procedural arithmetic.

    python scripts/make_starter_policy.py --work-dir runs/starter [--install]

Two phases: `skills` teaches worked solutions, hints and hint writing; `manner` then mixes in hasty guesses and flawed
formats, so that the policy can solve the tasks but does so unreliably, like a base model trained on mixed text.
Interrupted, it goes on from its last saved step. `--install` copies the result into the package with a model card that
holds the pass rates measured on reasoning-gym tasks whose prompts were kept out of the data.
"""

import argparse
import json
import math
import platform
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from starter_corpus import Style, sample_rows
from starter_evaluation import EVALUATION_TASKS, evaluation_prompts, measure, model_card
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PACKAGE_DIR = Path(__file__).resolve().parents[1] / "rlvr" / "starter"
SEED = 20261121
BATCH_ROWS, CHUNK_ROWS = 128, 64  # rows are sorted by length and trained in chunks, which halves the padding
PEAK_LR, WARMUP_STEPS, COSINE_STEPS = 2e-3, 200, 4400
SAVE_EVERY = 250
PHASES = (
    ("skills", 2600, Style(careful=0.95, flawed_format=0.01)),
    ("manner", 400, Style(careful=0.40, flawed_format=0.15)),
)
NUM_STEPS = sum(steps for _, steps, _ in PHASES)
WORDS = (
    "<pad> <eos> <unk> <think> </think> <answer> </answer> <hint> </hint> solve hint for level answer"
    " Solve for Find Determine State the value of in that satisfies final to following arithmetic problem equation"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words and whole numbers from -299 to 999 are single tokens; anything else in ASCII falls back to characters."""
    words = [*WORDS.split(), *map(str, range(-299, 1000)), *map(chr, range(33, 127))]
    pieces = list(dict.fromkeys([*words, *(f"##{chr(code)}" for code in range(33, 127))]))
    tokenizer = Tokenizer(
        models.WordPiece(
            {piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>", max_input_chars_per_word=200
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"</?[a-z]+>|-?\d+|[A-Za-z]+|."), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def style_at(step: int) -> Style:
    """The style of the phase that this step lies in."""
    first = 0
    for _, steps, style in PHASES:
        first += steps
        if step < first:
            return style
    raise ValueError(f"step {step} lies behind the last phase")


def learning_rate_at(step: int) -> float:
    """Warm-up, then a cosine over COSINE_STEPS that the last phase cuts short by falling linearly to zero."""
    last_phase = NUM_STEPS - PHASES[-1][1]
    anchor = min(step, last_phase)
    cosine = 0.5 * (1 + math.cos(math.pi * anchor / COSINE_STEPS))
    annealing = (NUM_STEPS - step) / (NUM_STEPS - anchor)
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * cosine) * annealing


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded (input_ids [B, L], labels [B, L]); only completion tokens and <eos> carry a label."""
    prompts = tokenizer([prompt for prompt, _ in rows])["input_ids"]
    completions = tokenizer([completion for _, completion in rows])["input_ids"]
    width = max(len(p) + len(c) + 1 for p, c in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor([*prompt, *completion, tokenizer.eos_token_id])
        input_ids[row, : len(ids)] = ids
        labels[row, len(prompt) : len(ids)] = ids[len(prompt) :]
    return input_ids, labels


def backward(model: Qwen3ForCausalLM, input_ids: torch.Tensor, labels: torch.Tensor, num_labels: int) -> float:
    """Adds the gradient of this chunk's share of the mean negative log-likelihood; returns that share."""
    hidden = model.model(input_ids).last_hidden_state[:, :-1]
    keep = labels[:, 1:] != -100
    loss = F.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep], reduction="sum") / num_labels
    loss.backward()
    return loss.item()


def train(work_dir: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Qwen3ForCausalLM, float]:
    """Runs the phases, resuming from `work_dir/state.pt`; returns the model and the seconds spent over all its runs."""
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01)
    state_path, first_step, spent = work_dir / "state.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step, spent = state["step"], state["seconds"]
    excluded = frozenset(prompt for name in EVALUATION_TASKS for prompt in evaluation_prompts(name))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns) as progress:
        bar = progress.add_task("starter", total=NUM_STEPS, completed=first_step)
        for step in range(first_step, NUM_STEPS):
            rows = sorted(
                sample_rows(SEED, step, BATCH_ROWS, style_at(step), excluded), key=lambda row: len(row[0]) + len(row[1])
            )
            chunks = [encode(tokenizer, rows[i : i + CHUNK_ROWS]) for i in range(0, BATCH_ROWS, CHUNK_ROWS)]
            num_labels = sum(int((labels[:, 1:] != -100).sum()) for _, labels in chunks)
            loss = sum(backward(model, input_ids, labels, num_labels) for input_ids, labels in chunks)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, description=f"starter loss {loss:.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == NUM_STEPS:
                seconds = spent + time.perf_counter() - started
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step + 1, "seconds": seconds}, state_path.with_suffix(".tmp"))
                state_path.with_suffix(".tmp").replace(state_path)
                print(f"step {step + 1} loss {loss:.4f} seconds {seconds:.0f}", flush=True)
    return model, spent + time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="holds the resumable training state")
    parser.add_argument("--install", action="store_true", help="copy the result into the package")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)

    tokenizer = build_tokenizer()
    model, seconds = train(arguments.work_dir, tokenizer)
    output_dir = arguments.work_dir / "model"
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    results = {name: measure(model, tokenizer, name) for name in EVALUATION_TASKS}
    facts = {
        "parameters": model.num_parameters(),
        "training_seconds": round(seconds),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "results": results,
    }
    (output_dir / "pass_rates.json").write_text(json.dumps(facts, indent=2) + "\n")
    (output_dir / "README.md").write_text(model_card(facts, NUM_STEPS, BATCH_ROWS, SEED))
    print((output_dir / "README.md").read_text())
    if arguments.install:
        for path in sorted(output_dir.iterdir()):
            shutil.copyfile(path, PACKAGE_DIR / path.name)


if __name__ == "__main__":
    main()
