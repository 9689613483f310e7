"""`rlvr train` with the launcher's engine, ended by a signal: resume_worker.py ARGUMENT...

By SIGTERM before the step $STOP_AT, as a scheduler's may come at any moment; the run saves after it. By SIGKILL so many
seconds after the first step began as $KILL_AFTER says, or after the start of the process if that is below 0.
"""

import os
import signal
import sys
import threading
from typing import Any

import rlvr.run
from rlvr.cli import app
from tests.distributed.sharded_worker import prepared_engine

STOP_AT, KILL_AFTER = "STOP_AT", "KILL_AFTER"


def kill_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


class Stopped(rlvr.run.InterruptCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == int(os.environ[STOP_AT]):
            os.kill(os.getpid(), signal.SIGTERM)


class Killed(rlvr.run.InterruptCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        kill_after(float(os.environ[KILL_AFTER]))


if __name__ == "__main__":
    if STOP_AT in os.environ:
        rlvr.run.InterruptCallback = Stopped  # type: ignore[misc]
    delay = float(os.environ.get(KILL_AFTER, "inf"))
    if delay < 0:
        kill_after(-delay)
    elif delay < float("inf"):
        rlvr.run.InterruptCallback = Killed  # type: ignore[misc]
    options = prepared_engine()
    overrides = ["trainer.accelerator_config={use_configured_state: true}"] if options else []
    app(["train", *sys.argv[1:], *overrides])
