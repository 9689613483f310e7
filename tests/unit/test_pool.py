"""Judging in worker processes: what hostile completions cost, and that nothing else changes."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from rewards._item import ItemReward, Judgement, Status, graded, item_reward
from rewards.math_answer import math
from rlvr.errors import RewardError
from rlvr.verification.judging import Judge, Judged, shared_judge
from rlvr.verification.nursery import serve
from rlvr.verification.tasks import Limits, spec_of
from tests.conftest import ROOT
from tests.unit.hostile_rewards import broken, counting, framed, loaded_torch, obedient, tagged

DEADLINE = 120  # seconds for a test, far more than any needs
MakeJudge = Callable[..., Judge]


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def make_judge() -> Iterator[MakeJudge]:
    made: list[Judge] = []

    def make(workers: int = 2, timeout_s: float = 1.0, cpu_s: float = 60.0, memory_mb: int = 512) -> Judge:
        made.append(Judge(workers, Limits(timeout_s, cpu_s, memory_mb)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ask(judge: Judge, texts: list[str], reward: ItemReward = obedient, answer: str = "yes", **options: Any) -> Any:
    columns = {"answer": answer} if reward.columns else {}
    return judge.judge(reward, options, [(text, columns) for text in texts])


def told(judged: list[Judged]) -> list[tuple[float | None, str]]:
    return [(each.judgement.value, each.judgement.status.value) for each in judged]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids: list[int]) -> list[int]:
    """Those that are still there after a generous while."""
    until = time.monotonic() + 30
    while time.monotonic() < until and any(map(alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


CORRECT, WRONG, TIMEOUT, ERROR = (1.0, "correct"), (0.0, "wrong"), (0.0, "timeout"), (0.0, "error")


# ---- order, deadlines, deaths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_keep_their_places(make_judge: MakeJudge, workers: int) -> None:
    texts = [f"{index}" for index in range(100)]
    texts[17] = texts[60] = "yes"
    assert told(ask(make_judge(workers), texts)) == [CORRECT if text == "yes" else WRONG for text in texts]


@pytest.mark.parametrize("places", [[0], [39], [0, 1, 2, 3], [5, 20, 38]])
def test_hanging_completions_cost_only_themselves(make_judge: MakeJudge, places: list[int]) -> None:
    texts = ["yes" if index % 2 else f"no {index}" for index in range(40)]
    for place, how in zip(places, ["sleep", "spin", "C", "stubborn"], strict=False):
        texts[place] = how
    expected = [CORRECT if text == "yes" else WRONG for text in texts]
    for place in places:
        expected[place] = TIMEOUT
    assert told(ask(make_judge(), texts)) == expected


@pytest.mark.parametrize("how", ["spin", "C", "stubborn spin"])
def test_processor_time_runs_out_before_the_deadline(make_judge: MakeJudge, how: str) -> None:
    judged = ask(make_judge(1, timeout_s=60.0, cpu_s=0.3), ["yes", how, "no", "yes 2"])
    assert told(judged) == [CORRECT, TIMEOUT, WRONG, WRONG]
    assert judged[1].judgement.reason == "no judgement within 0.3 s of processor time (rewards.cpu_s)"


def test_processor_time_is_limited_without_workers_too(make_judge: MakeJudge) -> None:
    judged = ask(make_judge(0, timeout_s=60.0, cpu_s=0.3), ["yes", "spin", "no"])
    assert told(judged) == [CORRECT, TIMEOUT, WRONG]
    assert judged[1].judgement.reason == "no judgement within 0.3 s of processor time (rewards.cpu_s)"


def test_each_judgement_has_its_own_processor_time_and_waiting_takes_none(make_judge: MakeJudge) -> None:
    texts = [*[f"burn 0.2 {index}" for index in range(5)], "doze 0.8"]
    for workers in (0, 1):
        assert told(ask(make_judge(workers, timeout_s=60.0, cpu_s=0.6), texts)) == [WRONG] * 6


def test_no_processor_time_is_counted_between_judgements() -> None:
    """Or a worker that reads its next batch could be ended, and the first answer of that batch be taken for endless."""
    ours, theirs = Pipe()
    theirs.send((spec_of(obedient), {}, [("yes", {"answer": "yes"})]))
    threading.Thread(target=lambda: (theirs.recv(), theirs.close()), daemon=True).start()
    serve(ours, {spec_of(obedient): obedient}, Limits(60.0, 60.0, 512))
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_right_answers_after_more_hanging_ones_than_workers_are_right(make_judge: MakeJudge) -> None:
    judge = make_judge(2, timeout_s=0.5)
    assert told(ask(judge, [f"sleep {index}" for index in range(4)])) == [TIMEOUT] * 4
    assert told(ask(judge, ["yes"] * 4)) == [CORRECT] * 4


@pytest.mark.parametrize("how", ["exit", "crash", "raise", "leave", "bomb"])
def test_what_kills_a_worker_or_raises_is_the_completions_fault(make_judge: MakeJudge, how: str) -> None:
    judge = make_judge(timeout_s=10)
    assert told(ask(judge, ["yes", how, "no", f"{how} again"])) == [CORRECT, ERROR, WRONG, ERROR]
    assert told(ask(judge, ["after"])) == [WRONG]


def test_reason_says_how_the_worker_died(make_judge: MakeJudge) -> None:
    reasons = [each.judgement.reason for each in ask(make_judge(timeout_s=10), ["exit", "crash", "bomb", "raise"])]
    assert reasons[0] == "the worker died of it (exit code 3)"
    assert reasons[1] == "the worker died of it (signal SIGSEGV)"
    assert reasons[2].startswith("MemoryError")
    assert reasons[3] == "ValueError: as told"


def test_completion_whose_worker_died_by_accident_is_judged_again(make_judge: MakeJudge, tmp_path: Path) -> None:
    text = f"once {tmp_path / 'died'}"
    assert told(ask(make_judge(timeout_s=10), ["yes", text], answer=text)) == [WRONG, CORRECT]
    assert (tmp_path / "died").read_text() == "died"


def test_idle_worker_that_died_is_replaced(make_judge: MakeJudge) -> None:
    judge = make_judge(1)
    ask(judge, ["a"])
    assert judge.pool is not None
    worker = judge.pool.processes()[1]
    os.kill(worker, signal.SIGKILL)
    assert wait_until_gone([worker]) == []
    assert told(ask(judge, ["yes"])) == [CORRECT]


def test_memory_of_a_worker_is_bounded_and_what_fits_is_not(make_judge: MakeJudge) -> None:
    assert told(ask(make_judge(1), ["bomb", "yes"])) == [ERROR, CORRECT]


# ---- the same with any number of workers ----------------------------------------------------------------------------


def test_results_do_not_depend_on_workers_batches_or_threads(make_judge: MakeJudge) -> None:
    texts = ["yes", "no", "", "sleep", "raise", "leave", "yes", "spin", "a", "stubborn"]
    whole = {workers: told(ask(make_judge(workers, 0.5), texts)) for workers in (0, 1, 3)}
    assert whole[0] == whole[1] == whole[3]
    judge = make_judge(2, 0.5)
    assert [told(ask(judge, [text]))[0] for text in texts] == whole[0]
    fresh, got = make_judge(2, 0.5), []
    threads = [threading.Thread(target=lambda: got.append(told(ask(fresh, texts)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == [whole[0]] * 3


def test_math_is_the_same_with_and_without_workers(make_judge: MakeJudge) -> None:
    texts = ["\\boxed{0.5}", "\\boxed{x+x}", "2x", "\\boxed{7}", "\\boxed{\\frac{1}{", "so $2 x$", "nothing"]
    without, within = (told(ask(make_judge(n, 20.0, 1024), texts, math, "2x")) for n in (0, 2))
    assert without == within
    assert [value for value, _ in within] == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_alarm_of_the_process_is_left_as_it_was(make_judge: MakeJudge) -> None:
    def mine(*_: Any) -> None: ...

    previous = signal.signal(signal.SIGALRM, mine)
    try:
        ask(make_judge(0, 0.2), ["yes", "sleep"])
        assert signal.getsignal(signal.SIGALRM) is mine
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, previous)


# ---- whose fault ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("how", "status"), [("raise", "error"), ("sleep", "timeout"), ("leave", "error")])
def test_verifier_that_fails_on_its_reference_has_no_verdict(
    make_judge: MakeJudge, workers: int, how: str, status: str
) -> None:
    judge = make_judge(workers, 0.5)
    assert told(ask(judge, ["fine", how, f"{how} more"], answer=f"{how} reference")) == [
        WRONG,
        (None, status),
        (None, status),
    ]


def test_reference_is_asked_once(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge = make_judge(1, 0.3)
    reference = f"once {tmp_path / 'asked'}"
    # It kills its worker once, which would show if it were asked more than the one time and its retry.
    for text in ("raise", "raise 2", "raise 3"):
        assert told(ask(judge, [text], answer=reference)) == [ERROR]
    assert len(judge._sound.entries) == 1


def test_reference_is_put_as_the_reward_wants_it(make_judge: MakeJudge) -> None:
    judge = make_judge(1, 5.0)
    assert told(ask(judge, ["bare"], tagged)) == [ERROR]  # in the default tag
    assert told(ask(judge, ["bare"], tagged, tag="final")) == [ERROR]
    assert told(ask(judge, ["bare"], framed, colour="blue")) == [ERROR]


def test_without_a_reference_a_failure_has_no_verdict(make_judge: MakeJudge) -> None:
    assert told(make_judge(1).judge(obedient, {}, [("raise", {"answer": None})])) == [(None, "error")]


def test_judging_a_reference_tells_whose_fault_later_failures_are(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge, told_once = make_judge(1), tmp_path / "once"
    row = {"answer": f"once {told_once}"}  # kills its worker, but not twice
    (judgement,) = judge.judge_references(obedient, {}, [(row["answer"], row)])
    assert judgement.value == 1.0
    told_once.unlink()
    assert told(judge.judge(obedient, {}, [("raise", row)])) == [(0.0, "error")]
    assert not told_once.exists()  # the reference was not judged again
    (failure,) = judge.judge_references(obedient, {}, [("raise", {"answer": "raise"})])
    assert (failure.value, failure.status, failure.reason) == (None, Status.ERROR, "ValueError: as told")


@pytest.mark.parametrize("workers", [0, 1])
def test_breach_of_the_contract_is_an_error_of_the_user(make_judge: MakeJudge, workers: int) -> None:
    with pytest.raises(RewardError, match=r"reward 'broken' returned 1\.0 for a completion; return a Judgement"):
        ask(make_judge(workers), ["a"], broken)


# ---- asked once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_completion_is_judged_once(make_judge: MakeJudge, workers: int, tmp_path: Path) -> None:
    judge, log = make_judge(workers), tmp_path / "log"
    first = ask(judge, ["a", "b", "a"], counting, str(log))
    assert [each.cached for each in first] == [False, False, True]
    second = ask(judge, ["b", "c"], counting, str(log))
    assert [each.cached for each in second] == [True, False]
    assert sorted(log.read_text().split()) == ["a", "b", "c"]
    assert told(first + second) == [CORRECT] * 5


def test_what_differs_is_another_question_and_no_verdict_is_asked_again(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge = make_judge(1)
    for answer in (tmp_path / "one", tmp_path / "two"):
        assert [each.cached for each in ask(judge, ["a"], counting, str(answer))] == [False]
    assert [each.cached for each in ask(judge, ["a"], tagged)] == [False]
    assert [each.cached for each in ask(judge, ["a"], tagged, tag="x")] == [False]
    for _ in range(2):
        assert [each.cached for each in ask(judge, ["nothing"], counting, str(tmp_path / "one"))] == [False]


def test_memory_of_questions_is_bounded(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge = make_judge(0)
    judge._known.size = 2
    for text in ("a", "b", "a", "c"):
        ask(judge, [text], counting, str(tmp_path / "log"))
    assert [each.cached for each in ask(judge, ["a", "b"], counting, str(tmp_path / "log"))] == [True, False]


# ---- processes ------------------------------------------------------------------------------------------------------


def test_workers_have_no_torch_though_this_process_has(make_judge: MakeJudge) -> None:
    assert "torch" in sys.modules
    assert told(ask(make_judge(1), ["a"], loaded_torch)) == [WRONG]


def test_reward_of_a_file_is_found_by_the_workers(make_judge: MakeJudge, tmp_path: Path) -> None:
    from rlvr.verification import load_reward

    source = (
        "from rewards._item import graded, item_reward\n@item_reward\ndef fn(text):\n    return graded(len(text))\n"
    )
    (tmp_path / "mine.py").write_text(source)
    reward = load_reward("./mine.py:fn", {}, tmp_path)
    assert isinstance(reward, ItemReward)
    assert [each.judgement.value for each in ask(make_judge(1), ["abc", "a"], reward)] == [3.0, 1.0]


def test_reward_that_workers_cannot_find_is_refused_with_the_remedy(make_judge: MakeJudge) -> None:
    @item_reward
    def inner(text: str) -> Judgement:
        return graded(1.0)

    with pytest.raises(RewardError, match=r"cannot find it; move it to the top level .* or set rewards.workers to 0"):
        ask(make_judge(1), ["a"], inner)
    assert told(ask(make_judge(0), ["a"], inner)) == [CORRECT]


def test_closing_leaves_no_process_and_the_next_question_starts_anew(make_judge: MakeJudge) -> None:
    judge = make_judge(2)
    ask(judge, ["a", "sleep"])
    assert judge.pool is not None
    for _ in range(2):
        ask(judge, [f"new {time.monotonic()}" for _ in range(4)])
        processes = judge.pool.processes()
        assert len(processes) == 3
        judge.close()
        assert wait_until_gone(processes) == []


def test_what_a_reward_started_is_killed_with_its_worker(make_judge: MakeJudge, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert told(ask(make_judge(1, 3.0), [f"child {file}"])) == [TIMEOUT]
    assert wait_until_gone([int(file.read_text())]) == []


@pytest.mark.parametrize("victim", ["parent", "nursery"])
def test_no_process_outlives_a_parent_or_nursery_that_is_killed(victim: str) -> None:
    program = (
        "import threading, time\nfrom rlvr.verification.judging import Judge\n"
        "from rlvr.verification.tasks import Limits\n"
        "from tests.unit.hostile_rewards import obedient\njudge = Judge(2, Limits(60.0, 60.0, 512))\n"
        "judge.judge(obedient, {}, [('a', {'answer': 'b'}), ('c', {'answer': 'b'})])\n"
        "hang = lambda: judge.judge(obedient, {}, [('spin', {'answer': 'b'})])\n"
        "threading.Thread(target=hang, daemon=True).start()\ntime.sleep(0.5)\n"
        "print(*judge.pool.processes(), flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        processes = [int(word) for word in run.stdout.readline().split()]
        assert len(processes) == 3
        assert all(map(alive, processes))
        os.kill(run.pid if victim == "parent" else processes[0], signal.SIGKILL)
        left = wait_until_gone(processes)
        run.kill()
        assert left == []


def test_error_amid_a_round_leaves_no_reply_for_the_next(
    make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rlvr.verification.pool as pool

    judge = make_judge(1, 20.0)
    wait = pool.wait

    def interrupted(*arguments: Any) -> Any:
        assert judge.pool is not None
        if 2 in judge.pool.workers[0].assigned:  # the last item
            raise KeyboardInterrupt
        return wait(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(judge, ["a", "b", "yes"])
    assert told(ask(judge, ["c", "d", "no"])) == [WRONG] * 3


def test_judge_of_equal_limits_is_shared() -> None:
    assert shared_judge(0, Limits(1.5, 1.0, 512)) is shared_judge(0, Limits(1.5, 1.0, 512))
    assert shared_judge(0, Limits(1.5, 1.0, 512)) is not shared_judge(0, Limits(1.5, 2.0, 512))


def test_status_of_nan_is_no_verdict(make_judge: MakeJudge) -> None:
    @item_reward
    def nan(text: str) -> Judgement:
        return Judgement(float("nan"), Status.WRONG)

    assert told(ask(make_judge(0), ["a"], nan)) == [(None, "error")]
