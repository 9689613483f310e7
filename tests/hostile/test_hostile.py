"""Hostile programs in bubblewrap and in a plain subprocess, and what the latter is known not to stop."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time

import pytest

from rewards._item import Judgement, Status
from rewards.code import code
from tests.hostile.conftest import Arena, processes_with
from tests.hostile.programs import (
    ADD,
    CALL,
    CALLER,
    DETACH,
    FAILING,
    FAKING,
    FORKS_ONE_BY_ONE,
    IO,
    LEAVING,
    SECRET,
    SPY,
    UNIT,
    WRITER,
)

pytestmark = pytest.mark.filterwarnings("ignore:backend unsafe_subprocess")


@pytest.mark.parametrize("name", FAILING)
def test_program_that_takes_too_much_or_crashes_gets_nothing(arena: Arena, name: str) -> None:
    program = FAILING[name]
    if name == "fork bomb" and arena.backend == "unsafe_subprocess" and os.geteuid() == 0:
        program = FORKS_ONE_BY_ONE  # the kernel does not limit root: a real bomb would slow every other test down
    judgement = arena.judge(program, IO, memory_mb=256)
    assert judgement.value == 0.0, judgement
    assert judgement.status in (Status.WRONG, Status.TIMEOUT)


def test_memory_is_limited(arena: Arena) -> None:
    judgement = arena.judge(FAILING["allocates 10 GB"], IO, timeout_s=20.0)
    assert "MemoryError" in judgement.reason


def test_output_is_cut_while_it_is_read(arena: Arena) -> None:
    judgement = arena.judge(FAILING["prints forever"], IO, timeout_s=20.0)
    assert judgement.status is Status.WRONG
    assert "printed too much" in judgement.reason


def test_memory_of_the_tests_is_closed(arena: Arena) -> None:
    program = """
import os
def look(name):
    try: return len(open(f'/proc/{os.getppid()}/{name}', 'rb').read(1))
    except OSError as error: return type(error).__name__
"""
    tests = {"unit": "assert [look(name) for name in ('mem', 'environ', 'maps')] == ['PermissionError'] * 3"}
    assert arena.judge(program, tests, timeout_s=10.0).value == 1.0


@pytest.mark.parametrize("name", LEAVING)
def test_nothing_is_left_of_a_program(arena: Arena, name: str) -> None:
    assert arena.judge(LEAVING[name], IO).value in (0.0, 1.0)


@pytest.mark.parametrize("name", FAKING)
@pytest.mark.parametrize("tests", [CALL, UNIT], ids=["function", "unit"])
def test_program_cannot_fake_its_verdict(arena: Arena, name: str, tests: dict[str, object]) -> None:
    if arena.backend == "unsafe_subprocess" and "memory" in name and os.getuid() != 0:
        pytest.skip("documented: it may read the memory of this user's processes, where the nonce is")
    judgement = arena.judge(FAKING[name], tests)
    assert judgement.value == 0.0, judgement


@pytest.mark.parametrize("tests", [CALL, UNIT], ids=["function", "unit"])
def test_program_that_is_right_passes(arena: Arena, tests: dict[str, object]) -> None:
    assert arena.judge(ADD, tests, timeout_s=10.0) == Judgement(1.0, Status.CORRECT)


def test_output_of_another_case_does_not_pass(arena: Arena) -> None:
    cases = [{"stdin": text, "stdout": text} for text in ("1", "2")]
    assert arena.judge("print(1)\nraise SystemExit(0)", {"stdin_stdout": cases}).value == 0.0
    assert arena.judge("print('1\\n2')", {"stdin_stdout": cases}, score="fraction").value == 0.0
    assert arena.judge("print(1)", {"stdin_stdout": cases}, score="fraction").value == 0.5


def test_input_that_is_large_is_read_or_left(arena: Arena) -> None:
    huge = {"stdin_stdout": [{"stdin": "x" * 30_000_000, "stdout": "ok"}]}
    reader = "import sys\nprint('ok' if len(sys.stdin.read()) == 30_000_000 else 'no')"
    for program in ("print('ok')", reader, "import os\nos.close(0)\nprint('ok')"):
        assert arena.judge(program, huge, timeout_s=10.0).value == 1.0


def test_program_has_no_more_input_than_was_given(arena: Arena) -> None:
    assert arena.judge("try: input(); input()\nexcept EOFError: print('ok')", IO).value == 1.0


def test_program_sees_nothing_of_the_caller(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = SECRET + secrets.token_hex(16)
    monkeypatch.setenv("RLVR_TEST_SECRET", secret)
    expected = {"stdin_stdout": [{"stdin": "", "stdout": secret}]}
    own = "import os\nprint(os.environ.get('RLVR_TEST_SECRET', 'no'), os.listdir('.'), os.listdir('/proc/self/fd'))"
    assert arena.judge(own, expected).value == 0.0
    files = {"stdin_stdout": [{"stdin": "", "stdout": "['main.py'] ['0', '1', '2', '3'] []"}]}
    listing = "import os, sys\nprint(os.listdir('.'), os.listdir('/proc/self/fd'), sys.argv[1:])"
    assert arena.judge(listing, files).value == 1.0
    if arena.backend == "bubblewrap":  # elsewhere it depends on who the program runs as: documented
        assert arena.judge(SPY, expected, timeout_s=10.0).value == 0.0


def test_writing_outside(arena: Arena) -> None:
    if arena.backend == "bubblewrap":
        arena.judge(WRITER, IO)
        assert not any(
            os.path.exists(f"{folder}/{arena.token}") for folder in ("/", "/etc", "/usr", "/root", "/dev/shm")
        )
        return
    # Documented: files of this user are not protected.
    with pytest.raises(AssertionError):
        arena.judge("open('@OUTSIDE@/written', 'w').close()", IO)
    assert (arena.outside / "written").exists()


def test_network(arena: Arena) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1.0)
        program = CALLER.replace("@PORT@", str(server.getsockname()[1]))
        arena.judge(program, IO, timeout_s=5.0)
        if arena.backend == "bubblewrap":
            with pytest.raises(TimeoutError):
                server.accept()
        else:  # documented: the network is open
            server.accept()[0].close()


def test_killing_the_supervisor(arena: Arena) -> None:
    # The child of a program that kills its parent has neither the environment nor the parent to be found by.
    orphan = "['python', '-c', 'import time; time.sleep(60)', '@TOKEN@'], {}"
    program = (
        f"{DETACH}parent = os.getppid()\nif os.fork() == 0:\n    os.setsid(); os.execve(sys.executable, {orphan})\n"
    )
    program += "time.sleep(0.5)\nos.kill(parent, 9)\ntime.sleep(60)"
    if arena.backend == "bubblewrap":
        assert arena.judge(program, IO).value == 0.0
        return
    with pytest.raises(AssertionError):  # documented: it outlives its run
        arena.judge(program, IO)
    left = processes_with(arena.token)
    assert len(left) == 1
    os.kill(left[0], 9)


def test_judging_outside_the_main_thread(arena: Arena) -> None:
    got: list[Judgement] = []

    def judge() -> None:
        got.append(arena.judge(ADD, CALL, timeout_s=10.0))
        got.append(arena.judge("while True: pass", IO, timeout_s=0.5))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join(timeout=60)
    assert [each.status for each in got] == [Status.CORRECT, Status.TIMEOUT]


def test_program_dies_with_the_process_that_judges(arena: Arena) -> None:
    program = (
        "import sys, tempfile\nfrom rewards.code import code\nfrom rewards.sandbox import process\n"
        f"process.ENVIRONMENT['RLVR_TEST'] = {arena.token!r}\ntempfile.tempdir = {str(arena.temporary)!r}\n"
        f"code.judge({DETACH + 'detach()' + chr(10) + 'time.sleep(60)'!r}, {IO!r}, backend={arena.backend!r},"
        " timeout_s=60.0, total_timeout_s=60.0)"
    )
    judge = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        # Supervisor or the two processes of the sandbox, the program, its detached child, and the judge's arguments.
        count = 5 if arena.backend == "bubblewrap" else 4
        wait_until(lambda: len(processes_with(arena.token)) == count)
        time.sleep(0.5)
        assert len(processes_with(arena.token)) == count
    finally:
        judge.kill()
        judge.wait()
    wait_until(lambda: processes_with(arena.token) == [] and not any(arena.temporary.iterdir()))


def wait_until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_program_is_no_run() -> None:
    assert code.judge("<think>print('ok')</think>", IO, backend="bubblewrap").status is Status.NO_ANSWER
