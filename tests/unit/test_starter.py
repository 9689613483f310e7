"""The policy inside the package does what its model card says, and its data keeps the evaluation out."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from rlvr.config.schema import ModelConfig
from rlvr.model import load_policy, load_tokenizer
from rlvr.model_paths import resolve_model_path
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import make_starter_policy
import starter_corpus
import starter_evaluation

STARTER = ModelConfig(path="builtin://starter")
STYLE = starter_corpus.Style(careful=0.5, flawed_format=0.0)


def test_whole_numbers_are_single_tokens_and_text_survives() -> None:
    tokenizer = load_tokenizer(STARTER)
    text = "<think> 9 - 12 = -3 ; -3 + 108 = 105 </think> <answer> 105 </answer>"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.split())
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in tokenizer("Solve for x: 3*x + 5 = 1234567, quickly!")["input_ids"]


def test_tokenizer_in_the_package_is_the_one_the_script_builds() -> None:
    built, shipped = make_starter_policy.build_tokenizer(), load_tokenizer(STARTER)
    assert built.get_vocab() == shipped.get_vocab()


def test_card_states_the_measured_rates() -> None:
    folder = Path(resolve_model_path("builtin://starter"))
    facts = json.loads((folder / "pass_rates.json").read_text())
    card = (folder / "README.md").read_text()
    assert card == starter_evaluation.model_card(
        facts, make_starter_policy.NUM_STEPS, make_starter_policy.BATCH_ROWS, make_starter_policy.SEED
    )
    six, hard = facts["results"]["chain_sum 6 terms"], facts["results"]["chain_sum 10 terms (hard)"]
    assert 0.2 <= six["pass@1"] <= 0.6
    assert six["pass@16"] > 0.8
    assert hard["0 of 8 right, some right with a hint"] >= 0.3


@pytest.mark.parametrize("name", ["chain_sum 6 terms", "simple_equations"])
def test_policy_reaches_its_card_on_a_few_prompts(name: str) -> None:
    model, tokenizer = load_policy(STARTER), load_tokenizer(STARTER)
    tasks = starter_evaluation.entries(name)[:24]
    prompts = [f"solve {starter_evaluation.question(task)}" for task in tasks]
    torch.manual_seed(0)
    groups = starter_evaluation.sample(model, tokenizer, prompts, 8, greedy=False)
    right = [[starter_evaluation.is_right(text, task) for text in g] for g, task in zip(groups, tasks, strict=True)]
    assert 0.2 < sum(map(sum, right)) / (8 * 24) < 0.6
    assert sum(map(any, right)) / 24 > 0.7


def test_policy_writes_and_uses_hints() -> None:
    model, tokenizer = load_policy(STARTER), load_tokenizer(STARTER)
    tasks = starter_evaluation.entries("chain_sum 10 terms (hard)")[:24]
    requests = [starter_evaluation.hint_request(task, 3) for task in tasks]
    written = starter_evaluation.sample(model, tokenizer, requests, 1, greedy=True)
    hints = [(starter_evaluation.HINT.search(text) or [None, None])[1] for (text,) in written]
    correct = [hint == starter_evaluation.true_hint(task, 3) for hint, task in zip(hints, tasks, strict=True)]
    assert sum(correct) / 24 > 0.6
    torch.manual_seed(0)
    hinted = [f"solve {starter_evaluation.question(t)} hint {starter_evaluation.true_hint(t, 1)}" for t in tasks]
    groups = starter_evaluation.sample(model, tokenizer, hinted, 8, greedy=False)
    solved = [any(starter_evaluation.is_right(text, task) for text in g) for g, task in zip(groups, tasks, strict=True)]
    assert sum(solved) / 24 > 0.7


def test_data_is_a_function_of_seed_and_step_and_leaves_prompts_out() -> None:
    rows = starter_corpus.sample_rows(1, 5, 50, STYLE, frozenset())
    assert rows == starter_corpus.sample_rows(1, 5, 50, STYLE, frozenset())
    assert rows != starter_corpus.sample_rows(1, 6, 50, STYLE, frozenset())
    excluded = frozenset(prompt for prompt, _ in rows[:10])
    kept = starter_corpus.sample_rows(1, 5, 50, STYLE, excluded)
    assert excluded.isdisjoint(prompt for prompt, _ in kept)


def test_worked_steps_and_hints_are_right() -> None:
    rng = random.Random(3)
    for _ in range(100):
        task = starter_corpus.sample_chain_sum(rng, rng.randint(3, 12))
        assert eval(task.text) == task.answer
        for step in task.steps():
            left, _, right = step.rpartition(" = ")
            assert eval(left) == int(right)
        rest = task.rest(2)
        assert eval(rest.text) == task.answer
        assert task.backward_steps(2)[-1].endswith(f"= {rest.terms[0]}")
        equation = starter_corpus.sample_equation(rng)
        left, _, right = equation.text.partition(" = ")
        assert eval(left, {equation.variable: equation.solution}) == int(right)
