"""Evaluation without a trainer gives the numbers of a run, and validation sets stay apart from test sets."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from rlvr.config import LoadedRecipe, load_recipe, resolved_yaml
from rlvr.errors import DataError, RecipeError
from rlvr.evaluation.sets import load_sets
from rlvr.evaluation.standalone import evaluate_model, evaluate_records, load_evaluation
from rlvr.model import load_policy, load_tokenizer
from rlvr.reporting.console import comparison_table
from rlvr.reporting.recorder import draw_learning_curve
from rlvr.rollout.generating import end_token_ids, until_end
from rlvr.run import run_recipe
from tests.conftest import WORDS, sharp, tiny_model, tiny_tokenizer
from tests.report_runs import measured

QUIET = Console(quiet=True)
LETTERS = WORDS[3:10]
TEST = [{"prompt": f"{a} {b}", "answer": a} for a in LETTERS[:3] for b in LETTERS]
VALIDATION = [
    {"prompt": " ".join([a, b, c][: 2 + (b == "a")]), "answer": b}
    for a, b, c in zip("defg", "abab", "abcd", strict=True)
]
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}{{ opening }}{% endif %}"
SCORING = """
def starts_right(completions, answer, **_):
    texts = [c if isinstance(c, str) else c[0]['content'] for c in completions]
    return [float(t.split()[:1] == [a]) if t.split() else 0.5 for t, a in zip(texts, answer)]

def asks(completions, scorer, **_):
    return [values[0] for values in scorer.score_tokens(['a'] * len(completions), ['b'] * len(completions))]
"""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def save_model(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One step of the tiny policy, with a test set and a validation set whose prompts differ in length."""
    chat = tiny_tokenizer()
    chat.chat_template = CHAT
    save_model(tmp_path / "model", sharp(tiny_model()), tiny_tokenizer())
    save_model(tmp_path / "chat", sharp(tiny_model()), chat)
    for name, rows in (("train", TEST), ("test", TEST), ("validation", VALIDATION)):
        write(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "scoring.py").write_text(SCORING)
    content: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "data": {"train": {"dataset": "train.jsonl"}},
        "rewards": {"functions": ["./scoring.py:starts_right", {"use": "./scoring.py:asks", "weight": 0.1}]},
        "trainer": {
            "num_generations": 2,
            "per_device_train_batch_size": 4,
            "max_completion_length": 5,
            "max_steps": 1,
            "learning_rate": 1e-3,
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
        },
        "evaluation": {
            "num_samples": 3,
            "k": [1, 3],
            "batch_size": 12,
            "temperature": 0.7,
            "seed": 5,
            "sets": {"heldout": {"dataset": "test.jsonl"}},
            "validation": {"choosing": {"dataset": "validation.jsonl"}},
        },
        "report": {"to": ["none"]},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def before_of(loaded: LoadedRecipe) -> list[dict[str, Any]]:
    text = (loaded.output_dir / "evaluations" / "before.json").read_text()
    return list(json.loads(text))


def standalone(loaded: LoadedRecipe) -> list[dict[str, Any]]:
    model = load_policy(loaded.recipe.model)
    results = [each for kind in ("test", "validation") for each in evaluate_model(loaded, model, kind, QUIET)]
    return [json.loads(json.dumps(each.to_json())) for each in results]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=chat", "trainer.chat_template_kwargs={opening: k}"),
        ("trainer.top_k=4", "trainer.min_p=0.05", "trainer.pad_to_multiple_of=4", "evaluation.greedy=false"),
        ("trainer.bf16=true", "trainer.repetition_penalty=1.3", "trainer.generation_kwargs={suppress_tokens: [5]}"),
    ],
)
def test_numbers_are_those_of_a_run(recipe: Path, overrides: tuple[str, ...]) -> None:
    loaded = load_recipe(recipe, [each.replace("=chat", f"={recipe.parent}/chat") for each in overrides])
    run_recipe(loaded, resume=False)
    before = before_of(loaded)
    assert [(each["name"], each["role"]) for each in before] == [("heldout", "test"), ("choosing", "validation")]
    assert 0 < before[0]["estimates"]["pass@1"]["value"] < 1
    assert 1 < before[0]["mean_length"] < 5
    assert standalone(loaded) == before


def test_model_is_left_as_it_was(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    model, evaluation = load_policy(loaded.recipe.model), load_evaluation(loaded)
    forwards = model.forward, model.get_output_embeddings().forward
    model.train()
    first = evaluate_records(evaluation, model, "validation", QUIET)
    assert (model.forward, model.get_output_embeddings().forward) == forwards
    assert model.training
    model.eval()
    assert evaluate_records(evaluation, model, "validation", QUIET) == first
    assert not model.training
    assert [record.prompt_id for record in first["choosing"]] == list(range(len(VALIDATION)))


def test_seeds_and_temperatures_of_single_sets_count(recipe: Path) -> None:
    model, found = load_policy(load_recipe(recipe).recipe.model), []
    for overrides in ([], ["evaluation.seed=6"], ["evaluation.temperatures.choosing=0.01"]):
        evaluation = load_evaluation(load_recipe(recipe, overrides))
        found.append(evaluate_records(evaluation, model, "validation", QUIET)["choosing"])
    assert found[0] != found[1]
    spread = [sum(len(set(record.lengths)) > 1 for record in records) for records in found]
    assert spread[0] > 0
    assert spread[2] == 0  # nearly greedy


def test_recipe_without_such_sets_is_refused(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["evaluation.validation={}"])
    with pytest.raises(RecipeError, match=r"recipe\.yaml: evaluation\.validation names no set; add one"):
        evaluate_model(loaded, sharp(tiny_model()), "validation", QUIET)
    loaded = load_recipe(recipe, ["evaluation.sets={}"])
    with pytest.raises(RecipeError, match=r"recipe\.yaml: evaluation\.sets names no set; add one"):
        evaluate_model(loaded, sharp(tiny_model()), "test", QUIET)


# ---- sets that may not share a prompt -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["model", "chat"])
def test_prompts_of_both_kinds_are_refused_before_anything_is_written(recipe: Path, model: str) -> None:
    write(recipe.parent / "validation.jsonl", [*VALIDATION, TEST[9], TEST[2], TEST[9]])
    loaded = load_recipe(recipe, [f"model={recipe.parent / model}"])
    with pytest.raises(DataError) as caught:
        run_recipe(loaded, resume=False)
    assert str(caught.value) == (
        "evaluation.validation.choosing has 2 of its 6 prompts in common with the test set evaluation.sets.heldout,"
        " such as 'b c'; give it other rows, as of another split or seed"
    )
    assert not loaded.output_dir.exists()


@pytest.mark.parametrize(
    ("template", "tested", "chosen", "shared"),
    [
        ("{prompt} {more}", ("a", "b"), ("a", "c"), False),
        ("{prompt}", ("a", "b"), ("a", "c"), True),
        ("{prompt} {more}", ("a b", "c"), ("a", "b c"), True),
    ],
)
def test_prompts_are_compared_after_the_template(
    recipe: Path, template: str, tested: tuple[str, str], chosen: tuple[str, str], shared: bool
) -> None:
    for name, (prompt, more) in (("test", tested), ("validation", chosen)):
        write(recipe.parent / f"{name}.jsonl", [{"prompt": prompt, "more": more, "answer": "a"}])
    loaded = load_recipe(recipe, [f"data.template='{template}'"])
    tokenizer = load_tokenizer(loaded.recipe.model)
    if not shared:
        assert set(load_sets(loaded, tokenizer).of("validation")) == {"choosing"}
        return
    with pytest.raises(DataError, match="has 1 of its 1 prompts in common"):
        load_sets(loaded, tokenizer)


def test_names_of_both_kinds_differ(recipe: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.validation\.heldout: is the name of a test set in evaluation"):
        load_recipe(recipe, ["evaluation.validation.heldout.dataset=validation.jsonl"])


def test_resolved_recipe_finds_the_rows_from_anywhere(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "recipe.yaml"
    elsewhere.write_text(resolved_yaml(load_recipe(recipe)))
    again = load_recipe(elsewhere).recipe.evaluation
    assert again.validation["choosing"].dataset == str(recipe.parent / "validation.jsonl")


# ---- who reads the results ------------------------------------------------------------------------------------------


def result(name: str, value: float, **more: str) -> dict[str, Any]:
    estimates = {"pass@1": {"value": value, "low": value - 0.1, "high": value + 0.1}}
    sizes = {"num_prompts": 3, "num_samples": 2, "mean_length": 4.0, "truncated_frac": 0.5}
    return {"name": name, "estimates": estimates, **sizes, **more}


def test_table_names_validation_sets_as_such_and_the_picture_leaves_them_out(tmp_path: Path) -> None:
    old, tested, chosen = result("a", 0.3), result("a", 0.3, role="test"), result("b", 0.6, role="validation")
    shown = StringIO()
    Console(width=120, file=shown).print(comparison_table([old, chosen], [tested, chosen]))
    assert re.findall(r"(\w+ .*)pass@1", shown.getvalue()) == ["a ", "b (validation) "]
    records = [{"step": 1, "outcome/pass_rate": 0.5, "entropy/mean_token": 1.0, "completions/mean_length": 3.0}]
    pictures = []
    for before, after in (([old], [tested]), ([old, chosen], [tested, chosen]), ([tested], [result("a", 0.5)])):
        draw_learning_curve(records, before, after, tmp_path / "picture.png")
        pictures.append((tmp_path / "picture.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    draw_learning_curve(records, [chosen], [chosen], tmp_path / "picture.png")


def test_changes_are_after_minus_before() -> None:
    """Paired where the outcomes are known by prompt."""
    pairs = [
        (measured("a", ["00", "10", "11"]), measured("a", ["11", "10", "11"])),
        (result("a", 0.3), result("a", 0.5)),
    ]
    cells = [next(iter(comparison_table([old], [new]).columns[3].cells)) for old, new in pairs]
    assert cells[0].startswith("+0.333\n[+0.00, +")
    assert cells[1] == "+0.200"


def test_table_of_a_set_whose_prompts_have_no_verdicts_at_one_end() -> None:
    scored, unscored = result("a", 0.3), result("a", 0.3) | {"estimates": {}}
    for before, after, cells in (
        (scored, unscored, ["0.300\n[0.20, 0.40]", "none scored", ""]),
        (unscored, scored, ["none scored", "0.300\n[0.20, 0.40]", ""]),
    ):
        table = comparison_table([before], [after])
        assert [next(iter(each.cells)) for each in table.columns] == ["a pass@1", *cells]


def test_end_of_a_completion() -> None:
    model = tiny_model()
    assert end_token_ids(model, tiny_tokenizer()) == [1]
    model.generation_config.eos_token_id = [7, 9]
    assert end_token_ids(model, tiny_tokenizer()) == [1, 7, 9]
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tiny_tokenizer()) == [1]
    assert until_end([4, 7, 1, 0], [1, 7]) == [4, 7]
    assert until_end([4, 5], [1]) == [4, 5]
