"""Two ranks, here threads that exchange objects, decide and record what one process does with the whole batch."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from rlvr.guidance import groups, hints, stage, teacher
from rlvr.guidance.tools import Guide, Guided
from rlvr.rollout import spread
from rlvr.rollout.rows import put, take
from rlvr.rollout.spread import Sampled, sample_together
from rlvr.sampling import groups as all_groups
from rlvr.tools import Tools
from rlvr.types import ScoredRollouts
from tests.unit import guide_script, test_guide_teacher
from tests.unit.guide_script import Script, hint_store, ids_of, never, step_of

Build = Callable[[Script, Tools], Guide]
NUM_RANKS = 2


class Ranks:
    """Threads that stand for ranks."""

    def __init__(self, count: int) -> None:
        self.count, self.slots = count, [[]] * count
        self.barrier, self.local = threading.Barrier(count, timeout=20), threading.local()

    def gather(self, values: list[Any]) -> list[Any]:
        if not hasattr(self.local, "rank"):
            return values
        self.slots[self.local.rank] = list(values)
        self.barrier.wait()
        everyones = [value for slot in self.slots for value in slot]
        self.barrier.wait()
        return everyones

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def on_rank(rank: int) -> Any:
            self.local.rank = rank
            try:
                return work(rank)
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.count) as pool:
            return [future.result() for future in [pool.submit(on_rank, rank) for rank in range(self.count)]]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks(NUM_RANKS)
    for module in (all_groups, groups, hints, stage, teacher, spread):
        monkeypatch.setattr(module, "gather_object", made.gather)
    return made


class ByPrompt(Script):
    """Answers by the prompt alone, so that it does not matter which rank asks, or in which order."""

    def _sample(self, prompt: str) -> Sampled:  # type: ignore[override]
        self.asked.append(prompt)
        outcomes = self.outcomes.get(prompt, "0")
        completion = self.texts[prompt][0] if prompt in self.texts else f"{guide_script.WORDS[outcomes]} new"
        ids = ids_of(completion)
        return Sampled(ids_of(prompt), ids, completion, [True] * len(ids), [-0.5] * len(ids), truncated=False)


def share(scored: ScoredRollouts, rank: int) -> ScoredRollouts:
    count = len(scored.rollouts.group_ids) // NUM_RANKS
    mine = range(rank * count, (rank + 1) * count)
    return ScoredRollouts(take(scored.rollouts, mine), take(scored.verdicts, mine))


def on_ranks(ranks: Ranks, build: Build, steps: list[ScoredRollouts], answers: dict[str, Any]) -> tuple[Any, ...]:
    """What the ranks' stages give for each step, joined; their metrics; their states; what they asked together."""
    asked: Counter[str] = Counter()

    def work(rank: int) -> tuple[list[Guided], dict[str, Any]]:
        script = ByPrompt(**answers)
        accelerator = SimpleNamespace(process_index=rank, num_processes=NUM_RANKS)
        counts = []

        def sample_evenly(prompts: list[Any]) -> list[Sampled]:
            counts.append(len(prompts))
            assert len(set(ranks.gather([len(prompts)]))) == 1
            return script.sample_evenly(prompts)

        guide = build(script, script.tools(accelerator, sample_evenly=sample_evenly))
        guided = [guide(share(scored, rank), step) for step, scored in enumerate(steps)]
        asked.update(script.asked)
        return guided, guide.state_dict()

    results = ranks.run(work)
    joined = []
    for step, before in enumerate(steps):
        pieces = [guided[step].scored for guided, _ in results]
        scored = before
        count = len(before.rollouts.group_ids) // NUM_RANKS
        for rank, piece in enumerate(pieces):
            rows = range(rank * count, (rank + 1) * count)
            scored = ScoredRollouts(
                put(scored.rollouts, rows, piece.rollouts), put(scored.verdicts, rows, piece.verdicts)
            )
        joined.append(scored)
    metrics = [[each.metrics for each in guided] for guided, _ in results]
    assert all(other == metrics[0] for other in metrics)
    assert all(state == results[0][1] for _, state in results)
    return joined, metrics[0], results[0][1], asked


def alone(build: Build, steps: list[ScoredRollouts], answers: dict[str, Any]) -> tuple[Any, ...]:
    script = ByPrompt(**answers)
    guide = build(script, script.tools())
    guided = [guide(scored, step) for step, scored in enumerate(steps)]
    joined = [ScoredRollouts(each.scored.rollouts, each.scored.verdicts) for each in guided]
    return joined, [each.metrics for each in guided], guide.state_dict(), Counter(script.asked)


def hinting(rule: str, source: str = "ahead", **config: Any) -> Build:
    def build(script: Script, tools: Tools) -> Guide:
        options: dict[str, Any] = {"explain_template": None, "write_template": "{answer} {level}", "attempts": 2}
        ahead = {each: ("one", "two", "three") for each in range(20)} if source == "ahead" else None
        if source == "self":
            options["source"] = "self"
        store = None if rule == "exemplar" else hint_store(script, ahead, never, tools=tools, **options)
        return guide_script.stage(script, rule, store=store, tools=tools, **config)

    return build


def teaching(script: Script, tools: Tools) -> Guide:
    guide = test_guide_teacher.teacher({0: ["right a", "right b", "wrong c"], 3: ["right d"], 4: ["right e"]})
    object.__setattr__(guide.tools, "accelerator", tools.accelerator)
    return guide


ANSWERS: dict[str, Any] = {
    "outcomes": {
        **{f"question 0\n\nHint: {hint}": "1" for hint in ("one", "two", "w0")},
        **{f"question 3\n\nHint: {hint}": "x" for hint in ("one", "w3")},
        "question 4\n\nHint: two": "1",
        "question 5\n\nHint: three": "1",
        "w3": "1",
    },
    "texts": {f"answer{each} 1": [f"<hint>w{each}</hint>"] for each in (0, 3)} | {"answer5 1": ["none"]},
}
STEPS = [
    step_of({0: "0000", 1: "0111", 2: "1111", 3: "0000", 4: "0000", 5: "0x00"}, interleaved=True),
    step_of({0: "0000", 4: "0000", 1: "0111", 2: "0000"}),
    step_of({0: "0000", 1: "0000", 2: "1111", 3: "1111"}),  # only the first rank has groups in need
    step_of({0: "1111", 1: "0111"}),
]
BUILDS: dict[str, Build] = {
    "nurl": hinting("nurl"),
    "resample": hinting("nurl", plain_rollout="resample", hint_conditioning="drop_plain"),
    "guide": hinting("guide", retries=1, hint_conditioning="drop_with_ratio"),
    "sage": hinting("sage", max_extra_rollouts=25),
    "light": hinting("sage", schedule="light"),
    "exemplar": hinting("exemplar"),
    "written": hinting("nurl", "self"),
    "teacher": teaching,
}


@pytest.mark.parametrize("name", BUILDS)
def test_two_ranks_are_one_process(ranks: Ranks, name: str) -> None:
    one, two = alone(BUILDS[name], STEPS, ANSWERS), on_ranks(ranks, BUILDS[name], STEPS, ANSWERS)
    for step, before in enumerate(STEPS):
        assert str(two[0][step]) == str(one[0][step])  # as text, for there may be NaN
        assert two[1][step] == pytest.approx(one[1][step])
        assert name != "nurl" or step == 3 or str(one[0][step]) != str(before)
    assert two[2] == one[2]
    assert set(two[3]) == set(one[3])


def test_exemplars_come_in_the_same_order_however_the_rows_are_spread(ranks: Ranks) -> None:
    """Both are equally near; what counts as newer may not depend on which rank has the rows."""
    steps = [step_of({0: "0101", 1: "0100", 2: "0000"}, interleaved=True)]
    one, two = (run(hinting("exemplar"), steps, {}) for run in (alone, lambda *each: on_ranks(ranks, *each)))
    assert two[2] == one[2]
    assert set(two[3]) == set(one[3])


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (3, 0), (2, 5), (4, 4)])
def test_sampling_together_asks_every_rank_for_equally_many_and_returns_each_its_own(
    ranks: Ranks, sizes: tuple[int, int]
) -> None:
    script, counts = Script(), []

    def work(rank: int) -> list[Sampled]:
        def sample(prompts: list[Any]) -> list[Sampled]:
            counts.append(len(prompts))
            return script.sample_evenly(prompts)

        accelerator: Any = SimpleNamespace(process_index=rank, num_processes=NUM_RANKS)
        return sample_together([f"rank{rank} no{number}" for number in range(sizes[rank])], sample, accelerator)

    results = ranks.run(work)
    for rank, sampled in enumerate(results):
        assert [each.context_ids for each in sampled] == [ids_of(f"rank{rank} no{n}") for n in range(sizes[rank])]
    assert counts == ([-(-sum(sizes) // 2)] * 2 if sum(sizes) else [])
