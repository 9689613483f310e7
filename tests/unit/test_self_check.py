"""Rows whose own reference the verifier does not find right: listed, dropped, or passed over, as the recipe says."""

from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console

from rewards._item import Judgement, graded, item_reward
from rlvr.config import resolved_yaml
from rlvr.config.schema import Recipe
from rlvr.data.self_check import rows_to_check, self_checked
from rlvr.errors import DataError, RewardError
from rlvr.verification import RewardFunction, load_reward
from tests.unit.config_text import MINIMAL, error_of, load
from tests.unit.hostile_rewards import broken, obedient

GOOD = ["1", "2", "3", "4"]


def dataset(*answers: str | None, first_id: int = 0, **columns: list[Any]) -> Dataset:
    """Rows as `build_dataset` leaves them."""
    ids = list(range(first_id, first_id + len(answers)))
    return Dataset.from_dict({"prompt": ["p"] * len(ids), "answer": list(answers), "prompt_id": ids, **columns})


def recipe(use: str = "numeric", rewards: dict[str, Any] | None = None, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": "m",
            "data": {"train": {"dataset": "rows.jsonl"}, **data},
            "rewards": {"functions": [use], "workers": 0, **(rewards or {})},
        }
    )


def check(
    data: Dataset, use: str = "numeric", function: Any = None, *, args: dict[str, Any] | None = None, **options: Any
) -> tuple[Dataset, str]:
    """The rows that are left, and what is printed."""
    output = StringIO()
    loaded = recipe(use, **options)
    function = load_reward(use, args or {}, Path()) if function is None else function
    functions = [RewardFunction(loaded.rewards.functions[0].label, 1.0, function)]
    kept = self_checked(data, functions, loaded, Console(file=output, width=200))
    return kept, output.getvalue()


def error_about(*arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        check(*arguments, **options)
    return str(caught.value)


@item_reward
def half(text: str, answer: str) -> Judgement:
    """Half a point to any text."""
    return graded(0.5)


@item_reward
async def patient(text: str, answer: str) -> Judgement:
    """Wrong, after a while."""
    return graded(0.0)


@item_reward
def needy(text: str, answer: str, hint: str) -> Judgement:
    """Takes a column."""
    return graded(float(hint == "h"))


# ---- error ----------------------------------------------------------------------------------------------------------


def test_bad_row_is_listed_with_its_number_and_reason_and_the_remedy_named() -> None:
    message = error_about(dataset("1", "2", "three", "4"))
    first, row = message.splitlines()
    assert first == (
        "data.train: rows.jsonl: the reference of 1 of 4 rows does not score as correct with 'numeric'; mend these"
        " rows or the reward's args, or set data.self_check to 'drop' or 'off':"
    )
    assert row == "  row 3: 'three' gets no verdict (the answer 'three' is not a number)"


def test_number_is_that_of_the_source_row_where_rows_were_dropped_before() -> None:
    assert "row 8: 'x'" in error_about(dataset("1", "x", first_id=6))


def test_sound_rows_are_all_kept() -> None:
    data = dataset(*GOOD)
    kept, output = check(data)
    assert kept.to_list() == data.to_list()
    assert "self-check" in output
    assert "4/4" in output


def test_ten_rows_are_listed_and_the_others_counted() -> None:
    lines = error_about(dataset(*["x"] * 12, "1")).splitlines()
    assert lines[0].startswith("data.train: rows.jsonl: the reference of 12 of 13 rows")
    assert [line.split(":")[0] for line in lines[1:11]] == [f"  row {number}" for number in range(1, 11)]
    assert lines[11:] == ["  and 2 more"]


def test_value_below_correct_at_is_told_with_it() -> None:
    assert "row 1: '1' gets 0.5, not 1" in error_about(dataset("1"), "half", half)
    assert len(check(dataset("1"), "half", half, rewards={"correct_at": 0.5})[0]) == 1


def test_long_references_and_reasons_are_shown_on_one_short_line() -> None:
    lines = error_about(dataset("x\n" * 500)).splitlines()
    assert len(lines) == 2
    assert len(lines[1]) < 350


@pytest.mark.parametrize(
    ("workers", "command", "reason"),
    [
        (0, "raise", "no verdict (ValueError: as told)"),
        (1, "raise", "no verdict (ValueError: as told)"),
        (1, "sleep", "no verdict (no judgement within 0.5 s)"),
        (1, "exit", "no verdict (the worker died of it (exit code 3))"),
    ],
)
def test_verifier_that_fails_on_a_reference_is_its_reason(workers: int, command: str, reason: str) -> None:
    rewards = {"workers": workers, "timeout_s": 0.5}
    message = error_about(dataset("yes", command, "no"), "obedient", obedient, rewards=rewards)
    assert message.splitlines()[1:] == [f"  row 2: {command!r} gets {reason}"]


def test_reference_is_the_completion_that_the_reward_wants() -> None:
    assert len(check(dataset("\\frac{1}{2}", "3"), "math")[0]) == 2
    assert len(check(dataset("a", "b"), "exact")[0]) == 2
    assert len(check(dataset("a", "b"), "exact", args={"tag": None})[0]) == 2
    assert "nothing in <final>" in error_about(
        dataset("a"), "exact", partial(needs_final, tag="answer"), rewards={"correct_at": 1.0}
    )


@item_reward
def needs_final(text: str, answer: str, *, tag: str = "final") -> Judgement:
    """1 with a tag that is not its option."""
    return graded(1.0) if "<final>" in text else Judgement(0.0, graded(0.0).status, "nothing in <final>")


def test_the_verifier_is_the_one_that_the_recipe_names() -> None:
    loaded = recipe(rewards={"functions": ["exact", "numeric"], "verifier": "numeric"})
    functions = [RewardFunction(use, 1.0, load_reward(use, {}, Path())) for use in ("exact", "numeric")]
    with pytest.raises(DataError, match="does not score as correct with 'numeric'"):
        self_checked(dataset("x"), functions, loaded, Console(quiet=True))


def test_columns_reach_the_verifier_and_a_missing_one_is_named() -> None:
    assert "row 2:" in error_about(dataset("1", "1", hint=["h", "-"]), "needy", needy)
    with pytest.raises(RewardError, match="reward 'needy' needs 'hint', which no column provides"):
        check(dataset("1"), "needy", needy)


def test_breach_of_the_contract_stays_an_error_of_the_reward() -> None:
    @item_reward
    def careless(text: str, answer: str) -> Judgement:
        return broken.judge(text)

    with pytest.raises(RewardError, match="reward 'careless' returned"):
        check(dataset("1"), "careless", careless)


# ---- which rows -----------------------------------------------------------------------------------------------------


def test_of_a_large_set_evenly_spaced_rows_are_checked_first_and_last_among_them() -> None:
    data = dataset(*["x"] * 10)
    assert rows_to_check(data, recipe(self_check_rows=4).data) == [0, 3, 6, 9]
    assert rows_to_check(data, recipe(self_check_rows=1).data) == [0]
    assert rows_to_check(data, recipe(self_check_rows=9).data) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    for wanted in (10, 11):
        assert rows_to_check(data, recipe(self_check_rows=wanted).data) == list(range(10))
    message = error_about(data, self_check_rows=4)
    assert "the reference of 4 of 4 checked rows (10 in all)" in message
    assert [line.split(":")[0].strip() for line in message.splitlines()[1:]] == ["row 1", "row 4", "row 7", "row 10"]


def test_more_rows_than_are_judged_at_once() -> None:
    answers = ["1"] * 600
    for bad in (0, 255, 256, 599):
        answers[bad] = "x"
    kept, _ = check(dataset(*answers), self_check="drop")
    assert len(kept) == 596
    assert set(range(600)) - set(kept["prompt_id"]) == {0, 255, 256, 599}


def test_rows_without_a_reference_are_left_out() -> None:
    assert "1 of 1 checked rows (3 in all)" in error_about(dataset("", "x", None))
    kept, _ = check(dataset("", "x", "1"), self_check="drop")
    assert kept["prompt_id"][:] == [0, 2]


# ---- drop and off ---------------------------------------------------------------------------------------------------


def test_drop_leaves_exactly_the_sound_rows_with_their_ids_and_prints_the_list() -> None:
    data = dataset("1", "[red]", "3", "y", level=[1, 2, 3, 4])
    kept, output = check(data, self_check="drop")
    assert kept.to_list() == [data[0], data[2]]
    assert "the reference of 2 of 4 rows does not score as correct with 'numeric'; dropped:" in output
    assert "  row 2: '[red]' gets no verdict" in output
    assert "  row 4: 'y' gets no verdict" in output


def test_drop_goes_by_ids_where_rows_were_dropped_before() -> None:
    kept, _ = check(dataset("1", "x", "3", first_id=1), self_check="drop")
    assert kept["prompt_id"][:] == [1, 3]


def test_drop_looks_at_every_row() -> None:
    many = dataset(*["1"] * 2000, "x", "1")
    assert check(many)[0].num_rows == 2002  # the first, the last and others, but not this one
    kept, _ = check(many, self_check="drop")
    assert sorted(set(range(2002)) - set(kept["prompt_id"])) == [2000]


def test_dropping_every_row_is_an_error() -> None:
    message = error_about(dataset("x", "y"), self_check="drop")
    assert "the reference of 2 of 2 rows does not score as correct with 'numeric', so data.self_check 'drop'" in message
    assert "row 2: 'y'" in message


def test_off_does_nothing() -> None:
    data = dataset("x", "y")
    kept, output = check(data, self_check="off")
    assert kept is data
    assert output == ""


# ---- nothing to check -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use", "function", "why"),
    [
        ("majority", None, "the verifier 'majority' does not judge completions one by one"),
        ("patient", patient, "the verifier 'patient' is asynchronous"),
        ("code", None, "for the verifier 'code' the 'answer' of a row is no completion"),
        ("regex", None, "for the verifier 'regex' the 'answer' of a row is no completion"),
    ],
)
def test_verifier_that_takes_no_reference_has_nothing_to_check_in_one_line(use: str, function: Any, why: str) -> None:
    args = {"pattern": "result: (?P<answer>.*)"} if use == "regex" else {}
    data = dataset("x", tests=["{}"])
    kept, output = check(data, use, function, args=args, self_check="drop")
    assert kept is data
    assert output == f"self-check: nothing to check, as {why}\n"


@pytest.mark.parametrize("data", [dataset("", None), Dataset.from_dict({"prompt": ["p"], "prompt_id": [0]})])
def test_data_without_a_reference_has_nothing_to_check(data: Dataset) -> None:
    kept, output = check(data)
    assert kept is data
    assert output == "self-check: nothing to check, as no row has a text in 'answer'\n"


# ---- the recipe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.self_check=drop", "data.self_check_rows=5"],
            "data.self_check_rows: has no effect, as self_check 'drop' looks at every row; set self_check to 'error',"
            " or remove it",
        ),
        (
            ["data.self_check=off", "data.self_check_rows=5"],
            "data.self_check_rows: has no effect, as self_check 'off' looks at no row; set self_check to 'error', or"
            " remove it",
        ),
        (["data.self_check_rows=0"], "data.self_check_rows: 0 is not valid; it must be at least 1"),
        (["data.self_check=warn"], "data.self_check: 'warn' is not valid; it must be 'error', 'drop' or 'off'"),
    ],
)
def test_contradictions_in_the_recipe(
    overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(MINIMAL, *overrides) == f"r.yaml: {message}"


def test_rows_to_check_may_be_set_with_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(MINIMAL, "data.self_check_rows=5").recipe.data.self_check_rows == 5
    assert load(MINIMAL).recipe.data.self_check == "error"


def test_off_may_be_written_bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML reads it as false."""
    monkeypatch.chdir(tmp_path)
    for text in ("off", "'off'"):
        loaded = load(MINIMAL, f"data.self_check={text}")
        assert loaded.recipe.data.self_check == "off"
        assert load(resolved_yaml(loaded)).recipe.data.self_check == "off"
