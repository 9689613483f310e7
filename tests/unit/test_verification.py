"""Loading rewards by name, and what follows from what they return."""

import asyncio
import inspect
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards import REGISTRY
from rewards._item import Status
from rewards.exact import exact
from rewards.numeric import numeric
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RewardError
from rlvr.verification import RewardFunction, Verdicts, load_reward, verify
from rlvr.verification.loading import describe_rewards

TEXTS = ["a", "bb", "ccc"]


def judged(
    *functions: RewardFunction,
    config: dict[str, Any] | None = None,
    step: int = 0,
    prompt_ids: list[int] | None = None,
    **columns: list[Any],
) -> Verdicts:
    """Verdicts on TEXTS; the first function is the verifier unless `config` names another."""
    listed = [{"use": "exact", "name": each.name} for each in functions]
    return verify(
        functions,
        RewardsConfig.model_validate({"functions": listed, "workers": 0} | (config or {})),
        step=step,
        prompts=["p"] * 3,
        completions=TEXTS,
        completion_ids=[[1], [1, 2], [1, 2, 3]],
        columns=columns,
        prompt_ids=prompt_ids,
        trainer_state="state",
    )


def constant(name: str, values: Any, weight: float = 1.0) -> RewardFunction:
    return RewardFunction(name, weight, lambda completions, **_: values)


# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY)
def test_every_registered_name_loads(name: str) -> None:
    function = load_reward(name, {}, Path())
    assert f"{function.__module__}:{function.__name__}" == REGISTRY[name]


def test_module_and_function_load() -> None:
    assert load_reward("rewards.exact:exact", {}, Path()) is exact


def test_args_are_bound() -> None:
    assert load_reward("numeric", {"tolerance": 1, "tag": None}, Path())(["4"], answer=["3"]) == [1.0]


def test_file_is_sought_beside_the_recipe_then_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, value in (("recipes", 1.0), ("work", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"def fn(completions, **_):\n    return [{value}]\n")
    (tmp_path / "work" / "other.py").write_text("def fn(completions, **_):\n    return [3.0]\n")
    monkeypatch.chdir(tmp_path / "work")
    assert load_reward("./mine.py:fn", {}, tmp_path / "recipes")(["x"]) == [1.0]
    assert load_reward("./mine.py:fn", {}, tmp_path / "elsewhere")(["x"]) == [2.0]
    assert load_reward("other.py:fn", {}, tmp_path / "recipes")(["x"]) == [3.0]
    assert load_reward(f"{tmp_path}/recipes/mine.py:fn", {}, Path())(["x"]) == [1.0]


def test_file_of_two_rewards_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("calls = []\ndef a(**_):\n    return calls\ndef b(**_):\n    return calls\n")
    first, second = (load_reward(f"./mine.py:{name}", {}, tmp_path) for name in "ab")
    assert first() is second()


def test_entry_points_of_installed_packages_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlvr.rewards]\nlength = plugin_rewards:length\n")
    (tmp_path / "plugin_rewards.py").write_text(
        'def length(completions, **_):\n    """Longer is better."""\n    return [float(len(c)) for c in completions]\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_reward("length", {}, Path())(["abc"]) == [3.0]
    assert describe_rewards()["length"] == "Longer is better."
    with pytest.raises(RewardError, match=r"did you mean 'length'\?"):
        load_reward("lenght", {}, Path())


def test_every_registered_reward_is_described_in_one_line() -> None:
    described = describe_rewards()
    assert set(described) >= set(REGISTRY)
    assert all(line.endswith(".") and "\n" not in line for line in described.values())


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("exakt", ["unknown reward 'exakt'", "did you mean 'exact'?", "format_tags", "numeric", "./file.py:function"]),
        ("zzz", ["unknown reward 'zzz'; names are ", "exact, format"]),
        ("mine.py", ["write mine.py:function"]),
        ("./nowhere.py:fn", ["there is no file nowhere.py in"]),
        ("no_such_package.rewards:fn", ["there is no module 'no_such_package'"]),
        ("rewards.exactly:fn", ["there is no module 'rewards.exactly'"]),
        ("rewards.exact:exakt", ["no function 'exakt'", "did you mean 'exact'?"]),
        ("rewards.exact:xyz", ["no function 'xyz'", "its functions are exact"]),
        ("rlvr.errors:xyz", ["no function 'xyz'", "it defines no function"]),
        ("rewards:REGISTRY", ["is a dict, not a function"]),
    ],
)
def test_reward_that_cannot_be_found_is_named_with_the_remedy(use: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(RewardError) as caught:
        load_reward(use, {}, tmp_path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_errors_inside_a_users_file_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import a_package_that_is_missing\n")
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
            load_reward("./mine.py:fn", {}, tmp_path)


@pytest.mark.parametrize(
    ("use", "args", "words"),
    [
        ("numeric", {"tolerence": 0.1}, ["does not accept the argument 'tolerence'", "did you mean 'tolerance'?"]),
        ("strict.py:strict", {"colour": 1}, ["does not accept the argument 'colour'", "arguments are limit"]),
        ("strict.py:bare", {"colour": 1}, ["does not accept the argument 'colour'", "it takes none"]),
        ("exact", {"completions": []}, ["'completions' is given by the trainer"]),
    ],
)
def test_argument_that_a_function_does_not_take_is_refused(
    use: str, args: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "strict.py").write_text("def strict(completions, limit=1): ...\ndef bare(completions): ...\n")
    with pytest.raises(RewardError) as caught:
        load_reward(use, args, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_function_with_named_keywords_takes_any_argument(tmp_path: Path) -> None:
    (tmp_path / "open.py").write_text("def fn(completions, **options):\n    return [options['colour']]\n")
    assert load_reward("open.py:fn", {"colour": 2.0}, tmp_path)(["x"]) == [2.0]


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_reward_is_the_weighted_total_and_outcome_the_verifiers() -> None:
    verdicts = judged(
        constant("style", [0.0, 1.0, 0.5], weight=0.5),
        constant("right", [1.0, 0.0, 0.75], weight=2.0),
        config={"verifier": "right"},
    )
    assert verdicts.names == ("style", "right")
    assert verdicts.components == [[0.0, 1.0], [1.0, 0.0], [0.5, 0.75]]
    assert verdicts.rewards == [2.0, 0.5, 1.75]
    assert verdicts.outcomes == [1.0, 0.0, 0.0]


def test_outcome_is_right_at_the_threshold_itself() -> None:
    assert judged(constant("v", [0.5, 0.49, 0.51]), config={"correct_at": 0.5}).outcomes == [1.0, 0.0, 1.0]


def test_no_verdict_of_the_verifier_makes_a_completion_unscorable_and_of_others_counts_as_zero() -> None:
    verdicts = judged(constant("v", [None, 1.0, 0.0]), constant("other", [1.0, None, 1.0], weight=0.5))
    assert verdicts.components == [[None, 1.0], [1.0, None], [0.0, 1.0]]
    assert verdicts.rewards == [None, 1.0, 0.5]
    assert verdicts.outcomes == [None, 1.0, 0.0]


def test_nan_is_no_verdict() -> None:
    verdicts = judged(constant("v", [math.nan, 1.0, np.float32("nan")]))
    assert verdicts.components == [[None], [1.0], [None]]
    assert verdicts.rewards == [None, 1.0, None]


def test_numbers_of_any_kind_become_floats() -> None:
    verdicts = judged(constant("v", (True, 1, np.float32(0.5))), constant("w", np.array([1.0, 2.0, 3.0])))
    assert verdicts.components == [[1.0, 1.0], [1.0, 2.0], [0.5, 3.0]]
    assert all(type(value) is float for row in verdicts.components for value in row)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0, 2.0], "reward 'v' returned 2 values for 3 completions"),
        ([1.0] * 4, "reward 'v' returned 4 values for 3 completions"),
        ([], "reward 'v' returned 0 values"),
        (None, "reward 'v' returned NoneType"),
        (1.0, "reward 'v' returned float"),
        ("abc", "reward 'v' returned str"),
        ([1.0, "1", 1.0], "reward 'v' returned '1' for a completion"),
        ([1.0, 1j, 1.0], "reward 'v' returned 1j"),
        (torch.ones(3), r"reward 'v' returned tensor\(1.\)"),
        ([1.0, math.inf, 1.0], "reward 'v' returned inf"),
        ([1.0, -math.inf, 1.0], "reward 'v' returned -inf"),
    ],
)
def test_breach_of_the_contract_names_the_function_and_what_it_returned(returned: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        judged(constant("fine", [1.0] * 3), constant("v", returned))


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (5, 2.0), (20, 3.0)])
def test_weight_follows_its_schedule(step: int, expected: float) -> None:
    function = RewardFunction("v", {0: 1.0, 10: 3.0}, lambda completions, **_: [1.0] * 3)
    assert judged(function, step=step).rewards == [expected] * 3


def test_clip_holds_the_value_in_the_total_only() -> None:
    function = RewardFunction("v", 2.0, lambda completions, **_: [-5.0, 0.5, 5.0], clip=(-1.0, 1.0))
    verdicts = judged(function, config={"correct_at": 3.0})
    assert verdicts.rewards == [-2.0, 1.0, 2.0]
    assert verdicts.components == [[-5.0], [0.5], [5.0]]
    assert verdicts.outcomes == [0.0, 0.0, 1.0]


def test_gate_closes_the_total() -> None:
    functions = [constant("v", [1.0, 1.0, 1.0]), constant("form", [0.5, 0.4, None], weight=2.0)]
    verdicts = judged(*functions, config={"gate": "form", "gate_at": 0.5})
    assert verdicts.rewards == [2.0, 0.0, 0.0]
    assert verdicts.outcomes == [1.0] * 3
    assert judged(*functions, config={"gate": "form"}).rewards == [0.0] * 3


def test_gate_gives_no_reward_to_what_has_no_verdict() -> None:
    verdicts = judged(constant("v", [None, 1.0, 0.0]), constant("form", [0.0] * 3), config={"gate": "form"})
    assert verdicts.rewards == [None, 0.0, 0.0]


def test_statuses_are_the_verifiers_or_follow_from_the_outcome() -> None:
    plain = constant("plain", [1.0, 0.0, None])
    assert judged(plain).statuses == [Status.CORRECT, Status.WRONG, Status.ERROR]
    item = RewardFunction("numeric", 1.0, numeric)
    verdicts = judged(plain, item, config={"verifier": "numeric"}, answer=["1", "2", "three"])
    assert verdicts.statuses == [Status.NO_ANSWER, Status.NO_ANSWER, Status.ERROR]
    assert verdicts.outcomes == [0.0, 0.0, None]


def test_shares_are_of_the_verifiers_statuses() -> None:
    statuses = [Status.TIMEOUT, Status.ERROR, Status.ERROR, Status.NO_ANSWER, Status.CORRECT]
    verdicts = Verdicts(("v",), [[0.0]] * 5, [0.0] * 5, [0.0] * 5, statuses, [True, False, False, False, True])
    assert {name: sum(values) for name, values in verdicts.shares().items()} == {
        "verify/timeout_frac": 1.0,
        "verify/error_frac": 2.0,
        "verify/no_answer_frac": 1.0,
        "verify/cache_hit_frac": 2.0,
    }


def test_item_reward_is_judged_by_workers_with_the_options_of_the_recipe() -> None:
    function = RewardFunction("numeric", 1.0, load_reward("numeric", {"tag": None, "tolerance": 1}, Path()))
    verdicts = verify(
        [function],
        RewardsConfig.model_validate({"functions": ["numeric"], "workers": 2}),
        prompts=[""] * 3,
        completions=["1", [{"role": "assistant", "content": "2"}], "9"],
        completion_ids=[[1]] * 3,
        columns={"answer": ["2"] * 3},
    )
    assert verdicts.rewards == [1.0, 1.0, 0.0]


# ---- calling --------------------------------------------------------------------------------------------------------


def test_function_gets_columns_batch_and_extras() -> None:
    seen = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0] * 3

    judged(RewardFunction("spy", 1.0, spy), answer=["1", "2", "3"], prompts=["a column of this name loses"])
    assert seen == {
        "answer": ["1", "2", "3"],
        "prompts": ["p"] * 3,
        "completions": TEXTS,
        "completion_ids": [[1], [1, 2], [1, 2, 3]],
        "trainer_state": "state",
    }


def test_function_without_keywords_gets_only_what_it_names() -> None:
    def same(completions: list[str], answer: list[str]) -> list[float]:
        return [float(a == b) for a, b in zip(completions, answer, strict=True)]

    assert judged(RewardFunction("same", 1.0, same), answer=["a", "b", "ccc"], level=[1, 2, 3]).rewards == [
        1.0,
        0.0,
        1.0,
    ]


def test_missing_column_is_named() -> None:
    with pytest.raises(RewardError, match="reward 'numeric' needs 'answer', which no column provides; there are level"):
        judged(RewardFunction("numeric", 1.0, numeric), level=[1, 2, 3])


def test_argument_of_the_recipe_wins_over_a_column_of_its_name() -> None:
    function = load_reward("exact", {"tag": None}, Path())
    assert judged(RewardFunction("exact", 1.0, function), answer=TEXTS, tag=["x", "y", "z"]).rewards == [1.0] * 3


def test_what_a_plain_function_raises_is_raised_unchanged() -> None:
    error = ZeroDivisionError("mine")

    def broken(completions: list[str]) -> list[float]:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        judged(RewardFunction("broken", 1.0, broken))
    assert caught.value is error


def async_functions() -> list[RewardFunction]:
    """Two that return only once both run at the same time, around a synchronous one; the second is an object."""
    barrier = asyncio.Barrier(2)

    async def meet(completions: list[str], value: float = 1.0, **_: Any) -> list[float]:
        await asyncio.wait_for(barrier.wait(), timeout=10)
        return [value] * len(completions)

    class Judge:
        async def __call__(self, completions: list[str], **_: Any) -> list[float]:
            return await meet(completions, value=3.0)

    return [RewardFunction("a", 1.0, meet), constant("sync", [2.0] * 3), RewardFunction("b", 1.0, Judge())]


EXPECTED = [[1.0, 2.0, 3.0]] * 3


def test_async_functions_run_concurrently_and_keep_their_places() -> None:
    assert judged(*async_functions()).components == EXPECTED


def test_async_function_with_bound_arguments_is_awaited(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        "async def fn(completions, value, **_):\n    return [value] * len(completions)\n"
    )
    function = load_reward("./later.py:fn", {"value": 4.0}, tmp_path)
    assert not inspect.isfunction(function)
    assert judged(RewardFunction("later", 1.0, function)).rewards == [4.0] * 3


def test_async_functions_work_in_a_thread_without_a_loop() -> None:
    got: list[Verdicts] = []
    thread = threading.Thread(target=lambda: got.append(judged(*async_functions())))
    thread.start()
    thread.join(timeout=30)
    assert got[0].components == EXPECTED


def test_async_functions_work_inside_a_running_loop() -> None:
    async def notebook() -> Verdicts:
        return judged(*async_functions())

    assert asyncio.run(notebook()).components == EXPECTED
