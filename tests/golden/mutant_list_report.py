"""The faults planted in the report: its reading, its verdict, its alarms, and what keeps hostile text harmless."""

FOLDER = "reporting/report/"
READING, RECORDS, TRENDS = FOLDER + "reading.py", FOLDER + "records.py", FOLDER + "trends.py"
VERDICT, ALARMS, COMPLETIONS = FOLDER + "verdict.py", FOLDER + "alarms.py", FOLDER + "completions.py"
PAGE, CHARTS, SECTIONS = FOLDER + "page.py", FOLDER + "charts.py", FOLDER + "sections.py"
SETUP, BUILDING, WATCHING = FOLDER + "setup.py", FOLDER + "building.py", FOLDER + "watching.py"
TOKENS = "reporting/token_values.py"

OF_READING, OF_PAGE = ("tests/unit/test_report_reading.py",), ("tests/unit/test_report_page.py",)
REPORT_TESTS: dict[str, tuple[str, ...]] = {
    READING: OF_READING,
    RECORDS: OF_READING,
    TRENDS: OF_READING,
    VERDICT: OF_READING,
    COMPLETIONS: OF_READING,
    ALARMS: ("tests/unit/test_report_alarms.py",),
    PAGE: OF_PAGE,
    CHARTS: OF_PAGE,
    SECTIONS: OF_PAGE,
    SETUP: OF_PAGE,
    BUILDING: OF_PAGE,
    WATCHING: OF_PAGE,
    TOKENS: ("tests/unit/test_token_values.py",),
}

# (file under rlvr/, old text, new text, description)
REPORT_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (READING, "by_step.get(step, {}) | {", "{", "eval metrics of a step replace the others"),
    (READING, "            is_finished = False\n            step", "            step", "a resumed run counts as ended"),
    (READING, "return float(value) if math.isfinite(value) else None", "return float(value)", "NaN is a value"),
    (READING, "unreadable += bool(line.strip())", "pass", "cut lines are not mentioned"),
    (READING, '"before": 0, "after": last_step', '"before": 0, "after": 1', "after is early"),
    (READING, 'entry.get("role", "test") == "test"', "True", "validation sets judged as test sets"),
    (TRENDS, "values[-count:].mean()", "values[:count].mean()", "late is early"),
    (TRENDS, "value * gaps[step] for", "value for", "means of ten steps counted once"),
    (VERDICT, "math.hypot(after.value - after.low", "math.hypot(after.high - after.low", "interval too wide"),
    (VERDICT, "middle - down, middle + up", "middle, middle + up", "no lower end"),
    (COMPLETIONS, 'ranks.append(0 if row["step"] in ends else', "ranks.append(", "no end is kept whole"),
    (COMPLETIONS, "if used + len(chunk) > max_bytes:", "if used > max_bytes:", "a chunk too many"),
    (COMPLETIONS, "clipped(printable(str(row[name])))", "clipped(str(row[name]))", "escapes of completions are kept"),
    (COMPLETIONS, "mtime=0", "mtime=None", "bytes depend on the clock"),
    (COMPLETIONS, "// TOKEN_ROWS))", "// len(rows)))", "values of every row"),
    (ALARMS, "passed.late > 0.9", "passed.late > 0.1", "collapse is never a problem"),
    (ALARMS, "entropy.late > 0.1 * entropy.early", "False", "low from the start is a collapse"),
    (ALARMS, "length.late < 1.5 * length.early", "length.late < length.early", "any growth is hacking"),
    (ALARMS, "if name != verifier}", "}", "the verifier's own gain is form"),
    (ALARMS, "series.values > 1.0", "series.values > 0.0", "small spikes are alarms"),
    (ALARMS, 'each.is_test and each.word == "worse"]', 'each.word == "worse"]', "validation sets condemn a run"),
    (ALARMS, 'by_k[max(by_k)].word == "worse":', 'by_k[max(by_k)].word != "better":', "any doubt is narrowing"),
    (PAGE, "autoescape=True", "autoescape=False", "names from a run are markup"),
    (CHARTS, 'rf"\\g<1>{name}-"', 'r"\\g<1>"', "ids of charts are not unique"),
    (CHARTS, '"svg.hashsalt": "rlvr",', "", "ids of charts are random"),
    (SECTIONS, "- sum(stages.values()), 0.0)", ", 0.0)", "the rest is the whole step"),
    (SECTIONS, "and name not in BETWEEN_STEPS.values()", "", "jumps counted in the step"),
    (SETUP, "if len(set(values)) > 1:", "if values:", "equal settings are differences"),
    (BUILDING, "is_live and not all(run.is_finished for run in runs)", "is_live", "a finished page reloads"),
    (WATCHING, "if now != seen:", "if True:", "built though nothing changed"),
    (TOKENS, "self._kept = {}\n        values", "values", "values of older steps"),
    (TOKENS, "stats.entropy[index][mask]", "stats.logprobs[index][mask]", "entropy is the log-probability"),
)
