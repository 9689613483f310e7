"""Saved models whose logits are extrapolated, and `rlvr extrapolate logits`."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import GenerationConfig, PreTrainedModel, Qwen3ForCausalLM
from typer.testing import CliRunner, Result

from rlvr.cli import app
from rlvr.config import load_recipe
from rlvr.config.schema import ModelConfig
from rlvr.errors import CheckpointError, ExtrapolationError, UserError
from rlvr.evaluation.standalone import evaluate_model
from rlvr.extrapolation.logits import ExtrapolatedLM, load_extrapolated
from rlvr.model import load_policy, load_tokenizer
from rlvr.reporting.printable import printable
from tests.conftest import tiny_model, tiny_tokenizer
from tests.unit.logits_cases import PROMPTS, logits, qwen3, with_lora


def save(folder: Path, model: PreTrainedModel | PeftModel) -> str:
    model.save_pretrained(folder)
    if isinstance(model, PreTrainedModel):
        tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def rename_tokens(folder: Path, new_names: dict[str, str]) -> None:
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {new_names.get(token, token): number for token, number in vocabulary.items()}
    file.write_text(json.dumps(tokenizer))


def saved_adapter(folder: Path, base: str, seed: int) -> str:
    policy = with_lora(Qwen3ForCausalLM.from_pretrained(base), seed)
    policy.peft_config["default"].base_model_name_or_path = base
    return save(folder, policy)


def test_loaded(tmp_path: Path) -> None:
    base, tuned = save(tmp_path / "base", qwen3(0)), save(tmp_path / "tuned", qwen3(1))
    model, tokenizer = load_extrapolated(base, tuned, 1.5)
    assert torch.equal(logits(model, PROMPTS), logits(ExtrapolatedLM(qwen3(0), qwen3(1), 1.5), PROMPTS))
    assert tokenizer.padding_side == "left"
    half, _ = load_extrapolated(base, tuned, 1.5, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    early, late = (saved_adapter(tmp_path / f"checkpoint-{seed}", base, seed) for seed in (3, 4))
    shared, _ = load_extrapolated(base, late, 1.5)
    assert shared.base is None
    assert torch.equal(logits(shared, PROMPTS), logits(ExtrapolatedLM(None, with_lora(qwen3(0), 4), 1.5), PROMPTS))
    both, _ = load_extrapolated(early, late, 1.5)
    expected = ExtrapolatedLM(with_lora(qwen3(0), 3), with_lora(qwen3(0), 4), 1.5)
    assert torch.equal(logits(both, PROMPTS), logits(expected, PROMPTS))
    from_adapter, _ = load_extrapolated(early, tuned, 1.5)
    expected = ExtrapolatedLM(with_lora(qwen3(0), 3), qwen3(1), 1.5)
    assert torch.equal(logits(from_adapter, PROMPTS), logits(expected, PROMPTS))


def test_refused_when_loaded(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tiny_model(0))
    renamed = save(tmp_path / "renamed", tiny_model(1))
    rename_tokens(tmp_path / "renamed", {"a": "b", "b": "a"})
    with pytest.raises(ExtrapolationError, match=r"differ in 2 tokens, as in 'a' \(3 and 4\)"):
        load_extrapolated(base, renamed, 1.5)
    larger = save(tmp_path / "larger", tiny_model(0, hidden_size=24))
    adapter = saved_adapter(tmp_path / "adapter", larger, 3)
    with pytest.raises(CheckpointError, match=r"does not go onto .*base; give the base that it was trained on"):
        load_extrapolated(base, adapter, 1.5)
    missing = str(tmp_path / "missing")
    for pair in ((base, missing), (missing, base)):
        with pytest.raises(UserError, match=f"^{missing}: the folder .* does not exist"):
            load_extrapolated(*pair, 1.5)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Two models in the folder where the command is called; that of `tuned` has sampling settings of its own."""
    save(tmp_path / "base", qwen3(0))
    tuned = qwen3(1)
    tuned.generation_config = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, temperature=0.3, repetition_penalty=5.0, eos_token_id=1, pad_token_id=0
    )
    save(tmp_path / "tuned", tuned)
    monkeypatch.chdir(tmp_path)
    return ("--base", "base", "--tuned", "tuned", "--alpha", "1.5")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["extrapolate", "logits", *arguments], env={"COLUMNS": "160"})


def completions(output: str) -> list[str]:
    return [part.split("\n")[1] for part in output.split("--- completion")[1:]]


def by_library(prompt: str, seed: int = 0, **options: float) -> str:
    model, tokenizer = ExtrapolatedLM(qwen3(0), qwen3(1), 1.5), tiny_tokenizer()
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    torch.manual_seed(seed)
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=7, top_k=0, **options)
    return str(tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))


def test_generate(pair: tuple[str, ...]) -> None:
    prompts = ["b", "c d a", "f"]
    options = ("--max-new-tokens", "7", "--temperature", "0")
    result = call(*pair, "generate", *(word for each in prompts for word in ("--prompt", each)), *options)
    assert result.exit_code == 0, result.output
    assert completions(result.stdout) == [by_library(each, do_sample=False) for each in prompts]
    for number, each in enumerate(prompts, start=1):
        assert f"--- prompt {number} of 3\n{each}\n" in result.stdout
    headers = [line for line in result.stdout.splitlines() if line.startswith("--- completion")]
    assert headers[0] == "--- completion, cut at 7 tokens"
    assert headers[2] == "--- completion"  # the model ends it at once


def test_sampling(pair: tuple[str, ...]) -> None:
    """The settings are those of the command, whatever the models' own are."""
    options = ("--prompt", "c d a", "--max-new-tokens", "7", "--temperature", "3", "--top-p", "0.95")
    first, again, other = (
        completions(call(*pair, "generate", *options, "--seed", seed).stdout) for seed in ("5", "5", "6")
    )
    assert first == again == [by_library("c d a", seed=5, do_sample=True, temperature=3.0, top_p=0.95)]
    assert first != other


def test_prompts_of_a_file_in_batches(pair: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvr.extrapolation.logits_running.PROMPTS_AT_ONCE", 2)
    (tmp_path / "some.jsonl").write_text('{"prompt": "b"}\n{"prompt": "c d a"}\n')
    result = call(*pair, "generate", "--prompt", "f", "--prompts", "some.jsonl", "--max-new-tokens", "7")
    assert result.exit_code == 0, result.output
    assert all(f"--- prompt {n} of 3\n{each}\n" in result.stdout for n, each in enumerate(("f", "b", "c d a"), 1))
    greedy = call(*pair, "generate", "--prompts", "some.jsonl", "--max-new-tokens", "7", "--temperature", "0")
    assert completions(greedy.stdout) == [by_library(each, do_sample=False) for each in ("b", "c d a")]


def test_chat_template(pair: tuple[str, ...], tmp_path: Path) -> None:
    for folder in ("base", "tuned"):
        template = "{% for message in messages %}k {{ message.content }} m {% endfor %}"
        (tmp_path / folder / "chat_template.jinja").write_text(template)
    options = ("--prompt", "c d", "--max-new-tokens", "7", "--temperature", "0")
    assert completions(call(*pair, "generate", *options).stdout) == [by_library("k c d m", do_sample=False)]
    plain = call(*pair, "generate", *options, "--no-chat")
    assert completions(plain.stdout) == [by_library("c d", do_sample=False)]


def test_printable() -> None:
    text = "two\nlines\tof 数 é 🙂\x1b[2J\x07\r\x9b\x7f\u202e\ud800"
    assert printable(text) == "two\nlines\tof 数 é 🙂\\x1b[2J\\x07\\r\\x9b\\x7f\\u202e\\ud800"


def test_terminal_controls_are_escaped(pair: tuple[str, ...], tmp_path: Path) -> None:
    likeliest = by_library("a b c", do_sample=False).split()[0]
    assert likeliest not in "a b c"
    for folder in ("base", "tuned"):
        rename_tokens(tmp_path / folder, {likeliest: "\x1b[2J"})
    options = ("--max-new-tokens", "1", "--temperature", "0")
    result = call(*pair, "generate", "--prompt", "a b c", "--prompt", "b \x1b[31m", *options)
    assert completions(result.stdout)[0] == "\\x1b[2J"
    assert "b \\x1b[31m" in result.stdout
    assert "\x1b" not in result.stdout


PROMPT = ("generate", "--prompt", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base", "base", "--alpha", "1", *PROMPT), "Which logits is not clear"),
        (("--base", "base", "--tuned", "tuned", "--alpha", "nan", *PROMPT), "--alpha is nan; give a finite number"),
        (("--base", "base", "--tuned", "tuned", "--alpha", "-2e6", *PROMPT), "1e+06 at most"),
        (("--base", "base", "--tuned", "broken", "--alpha", "1.5", *PROMPT), "The logits of base or of broken are NaN"),
        (("--base", "gone/", "--tuned", "tuned", "--alpha", "1", *PROMPT), "gone/"),
        (("--base", "builtin://x", "--tuned", "tuned", "--alpha", "1", *PROMPT), "no built-in model 'builtin://x'"),
        (("--base", "builtin://starter", "--tuned", "tuned", "--alpha", "1", *PROMPT), "tokenizers of the base"),
        ((*PROMPT, "--temperature", "-1"), "--temperature is -1"),
        ((*PROMPT, "--temperature", "nan"), "--temperature is nan"),
        ((*PROMPT, "--top-p", "0"), "--top-p is 0"),
        ((*PROMPT, "--top-p", "nan"), "--top-p is nan"),
        ((*PROMPT, "--max-new-tokens", "0"), "--max-new-tokens is 0"),
        ((*PROMPT, "--seed", "-1"), "--seed is -1"),
        (("generate",), "There is nothing to complete"),
        (("generate", "--prompt", ""), "A prompt is empty"),
        (("generate", "--prompts", "gone.jsonl"), "no such file of prompts"),
        (("generate", "--prompts", "base"), "no such file of prompts"),
        (("generate", "--prompts", "bad.jsonl"), "row 2 has no text as its `prompt`"),
    ],
)
def test_refused_in_one_sentence(pair: tuple[str, ...], tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    if "broken" in arguments:
        broken = tiny_model(1)
        broken.model.norm.weight.data[0] = math.nan
        save(tmp_path / "broken", broken)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "b"}\n{"prompt": 3}\n')
    result = call(*(() if arguments[0] == "--base" else pair), *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


# ---- evaluation ------------------------------------------------------------------------------------------------------

SUMS = "reasoning_gym://chain_sum?min_terms=2&max_terms=2&max_digits=1&seed="
RECIPE = f"""
model: builtin://starter
data: {{train: {{dataset: "{SUMS}1&size=4"}}, template: "solve {{metadata[expression]}} ="}}
rewards: {{verifier: reasoning_gym, functions: [reasoning_gym]}}
trainer: {{max_completion_length: 8, max_steps: 1}}
evaluation:
  num_samples: 2
  k: [1]
  sets: {{heldout: {{dataset: "{SUMS}2&size=6"}}}}
  validation: {{chosen_by: {{dataset: "{SUMS}3&size=4"}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the command is called, with a recipe and another model of the recipe's family."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    tuned = load_policy(ModelConfig(path="builtin://starter"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    load_tokenizer(ModelConfig(path="builtin://starter")).save_pretrained(tmp_path / "tuned")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "recipe.yaml"


def test_eval(recipe: Path) -> None:
    """At alpha 1 the results are those of the tuned model alone."""
    written = {}
    for alpha in ("1", "3"):
        pair = ("--base", "builtin://starter", "--tuned", "tuned", "--alpha", alpha)
        result = call(*pair, "eval", "recipe.yaml", "evaluation.num_samples=3", "--output", f"{alpha}.json")
        assert result.exit_code == 0, result.output
        assert f"alpha {alpha}" in result.stdout
        assert "heldout pass@1" in result.stdout
        written[alpha] = json.loads(Path(f"{alpha}.json").read_text())
    loaded = load_recipe(recipe, ["evaluation.num_samples=3"])
    alone = evaluate_model(loaded, load_policy(ModelConfig(path="tuned")), "test", Console(quiet=True))
    assert written["1"] == [each.to_json() for each in alone]
    assert written["1"] != written["3"]
    assert alone[0].num_prompts == 6


def test_eval_on_validation(recipe: Path) -> None:
    pair = ("--base", "builtin://starter", "--tuned", "tuned", "--alpha", "1.5")
    result = call(*pair, "eval", "recipe.yaml", "--on", "validation", "--output", "out.json")
    assert result.exit_code == 0, result.output
    assert [each["name"] for each in json.loads(Path("out.json").read_text())] == ["chosen_by"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("eval", "gone.yaml"), "gone.yaml"),
        (("eval", "recipe.yaml", "evaluation.num_sample=3"), "num_sample"),
        (("eval", "recipe.yaml", "--output", "gone/out.json"), "there is no folder"),
        (("eval", "recipe.yaml", "model.path=letters"), "tokenizers of the recipe's model.path and the two models"),
        (("eval", "recipe.yaml", "evaluation.validation={}", "--on", "validation"), "evaluation.validation names no"),
    ],
)
def test_eval_refuses_in_one_sentence(recipe: Path, arguments: tuple[str, ...], words: str) -> None:
    save(recipe.parent / "letters", tiny_model(0))
    result = call("--base", "builtin://starter", "--tuned", "tuned", "--alpha", "1.5", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom rlvr.cli import app\ntry:\n    app(['extrapolate', 'logits', 'generate', '--help'])\n"
        "finally:\n    assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys(), 'heavy'\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "heavy" not in shown.stderr
    assert "--top-p" in shown.stdout
