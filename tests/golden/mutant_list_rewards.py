"""Faults in the runtime of rewards: workers, whose fault a failure is, what is remembered, what the total is."""

POOL, NURSERY, TASKS = "verification/pool.py", "verification/nursery.py", "verification/tasks.py"
JUDGING, ASYNC, VERIFY = "verification/judging.py", "verification/asynchronous.py", "verification/verify.py"

# (file under rlvr/, old text, new text, description)
REWARD_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (POOL, "if index in self.deaths:", "if True:", "a worker that died is not given a second try"),
    (POOL, "self.waiting.extendleft(reversed(worker.assigned))", "pass", "items behind a hanging one are lost"),
    (POOL, "self.found[worker.assigned.popleft()] = outcome", "self.found[worker.assigned.pop()] = outcome", "order"),
    (
        POOL,
        "                    self.discard(worker)\n                raise",
        "                    pass\n                raise",
        "stale replies",
    ),
    (NURSERY, "os.killpg(pid, signal.SIGKILL)", "os.kill(pid, signal.SIGKILL)", "children of a reward live on"),
    (NURSERY, "prctl(PR_SET_PDEATHSIG, signal.SIGKILL)", "prctl(PR_SET_PDEATHSIG, 0)", "workers outlive the nursery"),
    (NURSERY, "_limit_memory(limits.memory_mb)", "_limit_memory(2**22)", "no limit on memory"),
    (NURSERY, "signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)", "pass", "no limit on processor time"),
    (NURSERY, "signal.setitimer(signal.ITIMER_PROF, 0)", "pass", "processor time between judgements counts"),
    (POOL, "if code == -signal.SIGPROF:", "if False:", "out of processor time is a death"),
    (TASKS, "signal.SIGPROF, limits.cpu_s)", "signal.SIGPROF, 1e6)", "no limit on processor time without workers"),
    (TASKS, "class _Deadline(BaseException)", "class _Deadline(Exception)", "a reward can swallow its deadline"),
    (JUDGING, "0.0 if sound[key] else None", "0.0", "a broken verifier counts as a wrong answer"),
    (JUDGING, "if outcome.value is not None:", "if True:", "no verdict is remembered"),
    (JUDGING, ", _digest(sorted(options.items())))", ")", "options are no part of the question"),
    (JUDGING, "known or key in seen", "known", "a repetition within a batch is not told"),
    (ASYNC, "if remaining == 0 or not is_transient(error):", "if remaining == 0:", "every error is tried again"),
    (
        ASYNC,
        "asyncio.Semaphore(limits.concurrency)",
        "asyncio.Semaphore(limits.concurrency + 1)",
        "one too many at once",
    ),
    (ASYNC, "timeout=limits.timeout_s)", "timeout=None)", "no deadline"),
    (
        VERIFY,
        "value is None or value < threshold",
        "value is None or value <= threshold",
        "gate closed at its threshold",
    ),
    (VERIFY, "min(max(value, low), high)", "max(value, low)", "clip has no upper bound"),
    (VERIFY, 'if i != verifier and takes(each.function, "outcomes")', "if i > verifier", "outcomes by place"),
    (VERIFY, "columns[verifier].values]", "columns[first[0]].values]", "outcomes of the first function"),
    (VERIFY, "value_at(each.weight, step)", "value_at(each.weight, 0)", "weights stay where they start"),
)
TESTS_OF_REWARDS = {
    ASYNC: ("tests/unit/test_async_rewards.py",),
    VERIFY: ("tests/unit/test_verification.py", "tests/unit/test_outcomes_for_rewards.py"),
}
POOL_TESTS = ("tests/unit/test_pool.py",)
