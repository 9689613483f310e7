"""Faults in going on from a checkpoint, and in what stays on the disk."""

RESUMABLE, RUN_DIRECTORY = "resumable.py", "run_directory.py"
FOLDERS, RETENTION = "checkpointing/folders.py", "checkpointing/retention.py"

RESUME_FAULTS = (
    (RESUMABLE, "return epoch", "return 0", "every pass has the order of the first"),
    (RESUMABLE, "self._buffered_inputs = progress.batches", "pass", "completions sampled again"),
    (RESUMABLE, 'self._metrics["train"].update(progress.metrics)', "pass", "sums of metrics lost"),
    (RESUMABLE, "self.latest_completions = progress.completions", "pass", "table of completions lost"),
    (RESUMABLE, "self.judge.load_state_dict(progress.judge)", "pass", "judgements forgotten"),
    (RESUMABLE, "load_plugins(Path(checkpoint), self.plugins)", "pass", "plug-ins begin anew"),
    (
        RESUMABLE,
        "self._step = self.state.global_step * self.args.gradient_accumulation_steps",
        "pass",
        "place in the generation lost",
    ),
    (RESUMABLE, " or self.state.global_step >= self.state.max_steps:", ":", "a step too many"),
    (RUN_DIRECTORY, "<= step and SUMMARY not in record", "<= step", "two summaries"),
    (RUN_DIRECTORY, 'int(record["step"]) <= step and SUMMARY', "SUMMARY", "records of steps that come again"),
    (RUN_DIRECTORY, "if names and not other_versions:", "if False:", "other versions taken"),
    (RUN_DIRECTORY, 'if facts["num_processes"] != num_processes:', "if False:", "other number of processes taken"),
    (FOLDERS, "if path.stat().st_size != size:", "if False:", "cut file taken"),
    (FOLDERS, "reversed(steps_of(run_dir))", "steps_of(run_dir)", "oldest instead of newest"),
    (FOLDERS, "        discard(final)\n", "        pass\n", "old checkpoint of the step in the way"),
    (RETENTION, 'if each["role"] == "validation"', "", "best by test sets"),
    (RETENTION, "ordered[-(keep_last or 1) :]", "ordered[-(keep_last or 0) :]", "newest not kept"),
    (RETENTION, "(-scores[step], step)", "(scores[step], step)", "worst kept"),
)
_RUNS = ("tests/distributed/test_resume.py", "tests/unit/test_resuming_mistakes.py")
_FOLDERS = ("tests/unit/test_checkpoint_folders.py",)
RESUME_TESTS = {RESUMABLE: _RUNS, RUN_DIRECTORY: _RUNS[::-1], FOLDERS: _FOLDERS, RETENTION: _FOLDERS}
