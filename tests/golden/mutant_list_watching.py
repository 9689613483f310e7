"""The faults planted in what watches a run: the watchdog, the log, and steps that are not finite."""

WATCHDOG, LOGS, RUNNING = "watching/watchdog.py", "watching/logs.py", "watching/running.py"
WATCH, SAVED = "watching/watch.py", "watching/saved_batch.py"

WATCHING_TESTS = {
    WATCHDOG: ("tests/unit/test_watching.py",),
    LOGS: ("tests/unit/test_watching.py",),
    RUNNING: ("tests/unit/test_watching.py",),
    WATCH: ("tests/unit/test_nonfinite.py",),
    SAVED: ("tests/unit/test_nonfinite.py",),
}

# (file under rlvr/, old text, new text, description)
WATCHING_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (WATCHDOG, "now - place.since > self._stall_s", "now - place.since > 2 * self._stall_s", "stall: twice as late"),
    (WATCHDOG, "now - self._reported_at > self._stall_s", "True", "stall: reported at every look"),
    (
        WATCHDOG,
        "            partial.replace(path)",
        "            path.write_text(partial.read_text())",
        "heartbeat: not at once",
    ),
    (WATCHDOG, "self._known_alarm = _changed_at(self._alarm)  #", "self._known_alarm = None  #", "alarm: an old one"),
    (WATCHDOG, "            self._known_alarm = changed_at\n", "", "alarm: answered at every look"),
    (WATCHDOG, "if _changed_at(self._alarm) == self._known_alarm:", "if False:", "alarm: the others are not told"),
    (WATCHDOG, "all_threads=True", "all_threads=False", "stacks of the watchdog alone"),
    (WATCHDOG, "            self._rearm()\n", "", "no timer outside of Python"),
    (WATCHDOG, 'exit=self.config.on_stall == "abort"', "exit=False", "the timer does not end the process"),
    (WATCHDOG, "os._exit(RunAborted.exit_code)", "sys.exit(RunAborted.exit_code)", "abort: ends the thread alone"),
    (
        WATCHDOG,
        "        except OSError as error:\n            if",
        "        except KeyError as error:\n            if",
        "a full disk ends it",
    ),
    (WATCHDOG, "            self._has_complained = True\n", "", "complains again and again"),
    (LOGS, "if not root.handlers:", "if False:", "terminal: silent"),
    (LOGS, " and not _has_own_handlers(record.name)", "", "terminal: records twice"),
    (
        LOGS,
        "if not (closed := logging.getLogger(name)).propagate",
        "if (closed := logging.getLogger(name))",
        "log: twice",
    ),
    (LOGS, "            logger.removeHandler(each)\n", "            pass\n", "log: goes on after the end"),
    (LOGS, "        shown(message, category, filename, lineno, file, line)\n", "", "terminal: no warnings"),
    (RUNNING, "exc_info=error", "exc_info=None", "log: no traceback"),
    (RUNNING, '"finished" if error is None else "stopped"', '"finished"', "heartbeat: finished by an error"),
    (RUNNING, 'open("a")', 'open("w")', "log: a resumed run begins it anew"),
    (WATCH, "            optimizer.zero_grad()  #", "            pass  #", "skip: the step is taken"),
    (WATCH, "            optimizer._is_overflow = True  #", "            pass  #", "skip: the schedule goes on"),
    (WATCH, "._is_overflow = False", "._is_overflow = True", "skip: the schedule stops for good"),
    (WATCH, "            self._skipped_in_a_row = 0\n", "            pass\n", "skip: in a row or not"),
    (WATCH, ">= self.config.max_skipped", "> self.config.max_skipped", "skip: one more"),
    (WATCH, "        if first == step.number:\n", "        if True:\n", "skip: every batch saved"),
    (WATCH, "        return not bad\n", "        return True\n", "skip: regularisers see it"),
    (WATCH, "if not 0 <= value < math.inf", "if math.isnan(value)", "gradient: infinity passes"),
    (WATCH, ' and AcceleratorState().mixed_precision != "fp16"', "", "gradient: under a loss scaler"),
    (WATCH, "_Step(state.global_step + 1,", "_Step(state.global_step,", "number of the step"),
    (WATCH, "        self._seen = []\n        return", "        return", "batches of earlier steps saved"),
    (WATCH, '["skipped_steps"], state["skipped_in_a_row"]', '["skipped_steps"], 0', "resumed: in a row forgotten"),
    (SAVED, "(mask & ~values.isfinite())", "(~values.isfinite() | ~mask)", "rows: padding is bad"),
    (SAVED, "lengths[row] - width]", "lengths[row]]", "prompt with its completion"),
    (SAVED, "return number if math.isfinite(number) else str(number)", "return number", "JSON with NaN"),
)
