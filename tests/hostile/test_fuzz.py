"""Ten thousand odd completions through the worker pool: no crash, no hang, no process left, the same verdicts again.

Each example of hypothesis is a batch for one reward, as the verdicts of a batch cost one trip to the worker.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards._item import ItemReward, Status
from rlvr.verification.judging import Judge
from rlvr.verification.tasks import Limits
from tests.rewards.cases import CASES, registered

REWARDS = (
    "math",
    "numeric",
    "exact",
    "multiple_choice",
    "regex",
    "json_schema",
    "countdown",
    "format_tags",
    "ifeval",
)
NUM_EXAMPLES, BATCH = 20, 56  # 9 rewards x 20 x 56 = 10,080 completions
TIMEOUT_S = 20.0  # per judgement, of which none may need it

PIECES = (
    "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "}", "\\frac{", "\\sqrt{", "{", "[", "]", "(", ")",
    "$", "```json\n", "```", "\n", " ", "3", "-3", "1/2", "1e9", "0.1", "9" * 30, "+", "-", "*", "/", "^", "=", ",",
    "x", "B", "(b)", "answer is ", "result: 3", '{"sum": 3}', '"', "null", "NaN", "\0", "\ud800", "\u202e", "٣", "ß",
    "\N{PILE OF POO}",
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.text(alphabet=st.characters(), max_size=40),  # surrogates too
    st.builds(lambda piece, count: piece * count, st.sampled_from(PIECES), st.integers(1, 300)),
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    made = Judge(1, Limits(TIMEOUT_S, TIMEOUT_S, 1024))
    yield made
    pids = made.pool.processes() if made.pool else []
    assert len(pids) == 2  # the nursery and one worker, however many completions there were
    made.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


def verdicts(judge: Judge, name: str, texts: list[str]) -> list[tuple[float | None, Status]]:
    """Judged anew."""
    case = CASES[name]
    reward: Any = registered(name)
    assert isinstance(reward, ItemReward)
    judge.forget()
    columns = {each.name: case.columns[each.name] for each in reward.columns if each.name in case.columns}
    judged = judge.judge(reward, dict(case.options), [(text, columns) for text in texts])
    return [(each.judgement.value, each.judgement.status) for each in judged]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="counts processes in /proc")
@pytest.mark.parametrize("name", REWARDS)
def test_odd_completions(name: str, judge: Judge) -> None:
    different: set[str] = set()
    count = 0

    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(TEXTS, min_size=BATCH, max_size=BATCH))
    def holds(texts: list[str]) -> None:
        nonlocal count
        count += len(texts)
        different.update(texts)
        found = verdicts(judge, name, texts)
        for text, (value, status) in zip(texts, found, strict=True):
            # A verdict on every text: none is the verifier's fault, none takes its time, none kills the worker.
            assert status in (Status.CORRECT, Status.WRONG, Status.NO_ANSWER), (text, status)
            assert value is not None, text
            assert 0.0 <= value <= 1.0, text
            assert (value >= 1.0) == (status is Status.CORRECT), text
        assert verdicts(judge, name, texts[::-1]) == found[::-1]

    holds()
    assert count >= NUM_EXAMPLES * BATCH
    assert len(different) > count / 3, len(different)
