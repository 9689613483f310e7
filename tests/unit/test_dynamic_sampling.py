"""Prompts whose completions are all right or all wrong make room for others."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from rlvr.config.sampler import DynamicConfig
from rlvr.rollout import spread
from rlvr.rollout.rows import put
from rlvr.rollout.spread import Sampled
from rlvr.sampling import dynamic as dynamic_module
from rlvr.sampling import groups as groups_module
from rlvr.sampling.dynamic import DynamicSampling, Resampled
from rlvr.tools import Tools
from rlvr.types import ScoredRollouts
from tests.conftest import MakeTrainer, letter_dataset
from tests.unit.guide_script import Script, ids_of, question, record_of, rows_of, step_of
from tests.unit.test_cli import recipe, train  # noqa: F401 - a fixture
from tests.unit.test_guide_in_trainer import guidance
from tests.unit.test_guide_ranks import NUM_RANKS, Ranks, share

SIGNAL = "10"


def rows(count: int = 40) -> Dataset:
    """Prompts of which the first ones are in the step; their ids are not their places."""
    ids = [*range(20), *range(100, 80 + count)]
    return Dataset.from_list(
        [{"prompt": question(i), "prompt_id": i, "answer": f"answer{i}", "note": 1000 + i} for i in ids]
    )


def stage(
    script: Script, *, max_rounds: int = 3, data: Dataset | None = None, tools: Tools | None = None, **options: Any
) -> DynamicSampling:
    options = {"left_to_guidance": None, "seed": 0} | options
    return DynamicSampling(DynamicConfig(max_rounds=max_rounds), data or rows(), tools or script.tools(), **options)


def everywhere(outcomes: str, **others: str) -> dict[str, str]:
    return {question(i): outcomes for i in rows()["prompt_id"]} | {question(int(k[1:])): v for k, v in others.items()}


def prompts_of(found: Resampled) -> list[int]:
    return list(dict.fromkeys(found.scored.rollouts.group_ids))


def test_prompts_without_signal_make_room() -> None:
    before = step_of({0: "11", 1: "10", 2: "00", 3: "01", 4: "1x", 5: "xx"}, interleaved=True)
    script = Script(everywhere(SIGNAL))
    found = stage(script)(before, 7)
    new = prompts_of(found)
    assert (new[1], new[3]) == (1, 3)
    fresh = [new[0], new[2], new[4], new[5]]
    assert len(set(fresh)) == 4
    assert not set(fresh) & set(range(6))
    for place, prompt_id in enumerate(new):
        for row in (place, place + 6):
            if prompt_id in (1, 3):
                assert record_of(found.scored, row) == record_of(before, row)
                continue
            now = record_of(found.scored, row)
            assert now["Rollouts.prompts"] == question(prompt_id)
            assert now["Rollouts.prompt_ids"] == now["Rollouts.context_ids"] == ids_of(question(prompt_id))
            assert now["Rollouts.loss_context_ids"] == now["Rollouts.context_ids"]
            assert (now["column.answer"], now["column.note"]) == (f"answer{prompt_id}", 1000 + prompt_id)
            assert "new" in now["Rollouts.completions"]
            assert now["Rollouts.sampling_logprobs"] == [-0.5] * len(now["Rollouts.completion_ids"])
            assert (now["Rollouts.truncated"], now["Rollouts.hints"]) == (False, None)
        outcomes = [found.scored.verdicts.outcomes[row] for row in rows_of(found.scored, prompt_id)]
        assert sorted(outcomes) == [0.0, 1.0]  # type: ignore[type-var]
    assert found.scored.plain == before
    assert found.metrics == {
        "dynamic/without_signal_frac": 4 / 6,
        "dynamic/replaced_frac": 4 / 6,
        "dynamic/rounds": 1.0,
        "dynamic/extra_rollouts": 8.0,
        "dynamic/extra_tokens": 24.0,
    }
    judged = script.judged[-1]
    assert judged.columns["answer"] == [f"answer{prompt_id}" for prompt_id in judged.group_ids]


def test_what_is_left_after_the_last_round_stays_as_it_was() -> None:
    before = step_of({0: "11", 1: "00", 2: "10"})
    script = Script(everywhere("0"))
    found = stage(script, max_rounds=4)(before, 0)
    assert [record_of(found.scored, row) for row in range(6)] == [record_of(before, row) for row in range(6)]
    asked = script.asked[::2]  # two completions of each
    assert len(asked) == len(set(asked)) == 8
    assert not {question(each) for each in range(3)} & set(asked)
    assert (found.metrics["dynamic/rounds"], found.metrics["dynamic/replaced_frac"]) == (4.0, 0.0)
    assert found.metrics["dynamic/extra_rollouts"] == 16.0


def test_rounds_go_on_with_what_is_left() -> None:
    """Of the prompts drawn only every second is worth it."""
    answers = {question(i): SIGNAL if i % 2 else "1" for i in rows()["prompt_id"]}
    found = stage(Script(answers), max_rounds=12)(step_of({0: "11", 2: "00", 4: "11"}), 3)
    assert all(prompt_id % 2 for prompt_id in prompts_of(found))
    assert found.metrics["dynamic/replaced_frac"] == 1.0
    assert 1 < found.metrics["dynamic/rounds"] < 12


def test_a_data_set_that_has_no_more_prompts_ends_it() -> None:
    data = rows().select([0, 1, 2, 3])
    script = Script(everywhere("1"))
    found = stage(script, data=data, max_rounds=5)(step_of({0: "11", 1: "00", 2: "11"}), 0)
    assert set(script.asked) == {question(3)}
    assert (found.metrics["dynamic/rounds"], prompts_of(found)) == (1.0, [0, 1, 2])
    twice = stage(Script(), data=rows().select([0, 1, 2, 2, 1]), max_rounds=5)  # rows that share an id
    assert twice(step_of({0: "11", 1: "00", 2: "11"}), 0).metrics["dynamic/rounds"] == 0.0
    whole = stage(Script(), data=data, max_rounds=5)(step_of({0: "11", 1: "00", 2: "11", 3: "00"}), 0)
    assert whole.metrics["dynamic/rounds"] == 0.0


def test_prompts_that_are_to_be_helped_are_left_to_guidance() -> None:
    before = step_of({0: "1111", 1: "0000", 2: "000x", 3: "xxxx"})
    found = stage(Script(everywhere("1100")), left_to_guidance=0.0)(before, 0)
    assert prompts_of(found)[1:3] == [1, 2]
    assert not {0, 3} & set(prompts_of(found))
    assert found.metrics["dynamic/without_signal_frac"] == 0.5


def test_draws_are_those_of_the_seed_and_the_step() -> None:
    def drawn(seed: int, step: int) -> list[int]:
        return prompts_of(stage(Script(everywhere(SIGNAL)), seed=seed)(step_of({0: "11", 1: "00"}), step))

    assert drawn(0, 4) == drawn(0, 4)
    assert len({tuple(drawn(seed, step)) for seed in range(3) for step in range(3)}) == 9


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks(NUM_RANKS)
    for module in (dynamic_module, groups_module, spread):
        monkeypatch.setattr(module, "gather_object", made.gather)
    return made


class Spread(Script):
    """Answers by the place of a prompt among those that all ranks ask for together."""

    rank = 0

    def sample_evenly(self, prompts: Sequence[Any]) -> list[Sampled]:
        first = self.rank * len(prompts)
        return [self._at(first + place, prompt) for place, prompt in enumerate(prompts)]

    def _at(self, place: int, prompt: str) -> Sampled:
        word = "right" if (5 * place + ids_of(prompt)[-1]) % 23 < 2 else "wrong"
        ids = ids_of(f"{word} {prompt}")
        return Sampled(ids_of(prompt), ids, f"{word} {prompt}", [True] * len(ids), [-0.5] * len(ids), truncated=False)


@pytest.mark.parametrize("interleaved", [False, True])
def test_two_ranks_decide_as_one_process(ranks: Ranks, interleaved: bool) -> None:
    """Also where the completions of a prompt lie on both, and where the ranks have unlike numbers to sample."""
    groups = {0: "1111", 1: "1010", 2: "1111", 4: "1000", 5: "0000", 7: "1110"}
    before = step_of(groups, interleaved=interleaved)
    script = Spread()
    whole = stage(script, max_rounds=2)(before, 5)
    assert 0 < whole.metrics["dynamic/replaced_frac"] < 0.5  # some are accepted, in some round, and some are not

    def work(rank: int) -> Resampled:
        mine = Spread()
        mine.rank = rank
        accelerator = SimpleNamespace(process_index=rank, num_processes=NUM_RANKS)
        return stage(mine, tools=mine.tools(accelerator), max_rounds=2)(share(before, rank), 5)

    pieces = ranks.run(work)
    count = len(before.rollouts.group_ids) // NUM_RANKS
    joined = before
    for rank, piece in enumerate(pieces):
        places = range(rank * count, (rank + 1) * count)
        joined = ScoredRollouts(
            put(joined.rollouts, places, piece.scored.rollouts), put(joined.verdicts, places, piece.scored.verdicts)
        )
    for row in range(2 * count):
        assert record_of(joined, row) == record_of(whole.scored, row)
    assert all(piece.metrics == whole.metrics for piece in pieces)


# ---- in the trainer -------------------------------------------------------------------------------------------------


def rare(completions: list[str], **_: Any) -> list[float]:
    """1 when the first word is an a, so that many groups have no right completion."""
    return [float(c.split()[:1] == ["a"]) for c in completions]


def sampling(data: Dataset, left_to_guidance: float | None = None) -> Callable[[Tools], DynamicSampling]:
    return lambda tools: DynamicSampling(
        DynamicConfig(max_rounds=6), data, tools, left_to_guidance=left_to_guidance, seed=0
    )


def test_a_run_trains_on_more_prompts_with_signal(make_trainer: MakeTrainer) -> None:
    """And its pass rate stays that of the prompts that came first."""
    data = letter_dataset()
    logs = {}
    for build in (None, sampling(data)):
        torch.manual_seed(0)
        trainer = make_trainer(reward=rare, dataset=data, dynamic=build, max_steps=1)
        trainer.train()
        logs[build is None] = trainer.state.log_history[0]
        for parameter in trainer.model.parameters():
            assert torch.isfinite(parameter).all()
    plain, found = logs[True], logs[False]
    assert found["outcome/pass_rate"] == plain["outcome/pass_rate"]
    assert found["groups/solved_frac"] == plain["groups/solved_frac"]
    assert plain["groups/unsolved_frac"] > 0
    assert found["groups/equal_reward_frac"] < plain["groups/equal_reward_frac"]
    assert found["advantage/zero_frac"] < plain["advantage/zero_frac"]
    assert found["dynamic/replaced_frac"] > 0
    assert found["time/resample_s"] > 0


def test_a_run_in_which_every_prompt_has_signal_is_as_without(make_trainer: MakeTrainer) -> None:
    def halves(completions: list[str], **_: Any) -> list[float]:
        return [float(place % 2) for place in range(len(completions))]

    data, runs = letter_dataset(), []
    for build in (None, sampling(data)):
        torch.manual_seed(0)
        trainer = make_trainer(reward=halves, dataset=data, dynamic=build, max_steps=3)
        trainer.train()
        runs.append([parameter.clone() for parameter in trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def by_prompt(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """Some prompts are always solved, some never, and others every second time."""
    return [float(a in "abcdef" or (a not in "gh" and place % 2)) for place, a in enumerate(answer)]


def test_beside_guidance(make_trainer: MakeTrainer) -> None:
    """Solved prompts make room, failed ones are helped, and the pass rate is that of the prompts that came first."""
    data = letter_dataset()
    both = {"guidance": guidance("nurl"), "dynamic": sampling(data, left_to_guidance=0.0)}
    torch.manual_seed(0)
    alone = make_trainer(reward=by_prompt, dataset=data, max_steps=1)
    alone.train()
    torch.manual_seed(0)
    trainer = make_trainer(reward=by_prompt, dataset=data, max_steps=1, **both)
    trainer.train()
    log, plain = trainer.state.log_history[0], alone.state.log_history[0]
    assert log["outcome/pass_rate"] == plain["outcome/pass_rate"]
    assert log["guidance/needed_frac"] == plain["groups/unsolved_frac"] > 0
    assert log["dynamic/replaced_frac"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampler.dynamic={max_rounds: 0}"], "sampler.dynamic.max_rounds"),
        (["sampler.dynamik={}"], "did you mean 'dynamic'"),
        (["sampler.dynamic={}", "trainer.num_generations=1"], "num_generations"),
    ],
)
def test_refusals(recipe: Any, overrides: list[str], message: str) -> None:  # noqa: F811
    result = train(recipe, *overrides)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
