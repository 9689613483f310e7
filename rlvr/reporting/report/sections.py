"""The sections about one run, each a function of the run, in the order of the page."""

from collections.abc import Callable, Sequence

import numpy as np

from rlvr.reporting.printable import printable
from rlvr.reporting.report.alarms import reward_names, verifier_name
from rlvr.reporting.report.blocks import Curve, Figure, Section, Table, Unavailable, curves, figure_of, number, present
from rlvr.reporting.report.charts import Chart, Line, draw_bars
from rlvr.reporting.report.reach import beyond
from rlvr.reporting.report.records import Moment, Run, Series
from rlvr.reporting.report.trends import total
from rlvr.reporting.report.verdict import change_of, interval, moments_in_words, p_value_in_words, signed

SHARE = (-0.02, 1.02)
BETWEEN_STEPS = {"jumps": "time/extrapolate_s", "evaluations": "time/evaluate_s"}  # not in every step, nor in its time
UNPAIRED = "as if the prompts had been others each time, which makes their intervals wide"


def learning(run: Run) -> Section:
    groups = [
        Curve("groups/solved_frac", "all right"),
        Curve("groups/unsolved_frac", "all wrong"),
        Curve("groups/equal_reward_frac", "equal rewards"),
    ]
    rates = [
        Curve("outcome/pass_rate", "pass rate"),
        Curve("outcome/pass_at_n", "any of n right"),
        Curve("outcome/maj_at_n", "majority right"),
    ]
    figures = present(
        curves(run, "Pass rate of training completions", rates, "By the verifier, without help.", limits=SHARE),
        *_held_out(run),
        curves(
            run, "Reward", [Curve("reward/mean", "mean"), Curve("reward/std", "standard deviation")], "Weighted total."
        ),
        curves(run, "Groups", groups, "Shares of groups; equal rewards teach nothing.", limits=SHARE),
        curves(run, "Loss", _loss_curves(run), "Terms of the loss, coefficients included."),
        curves(run, "Learning rate", [Curve("learning_rate", "learning rate")], ""),
    )
    return _section("learning", "Learning curves", figures, "No step has a pass rate, a reward or a loss.")


def _loss_curves(run: Run) -> list[Curve]:
    return [Curve(name, name.removeprefix("loss/")) for name in run.metric_names if name.startswith("loss/")]


def _held_out(run: Run) -> list[Figure]:
    """pass@1 of every set at every evaluation."""
    if not run.moments:
        return []
    lines = []
    for name in _set_names(run.moments):
        found = [
            (moment.step, result.estimates["pass@1"], result.is_test)
            for moment in run.moments
            for result in moment.results
            if result.name == name and "pass@1" in result.estimates
        ]
        if found:
            steps, estimates, roles = zip(*found, strict=True)
            series = Series(np.array(steps), np.array([each.value for each in estimates]))
            bands = np.array([[each.low, each.high] for each in estimates])
            lines.append(Line(name if roles[-1] else f"{name} (validation)", series, bands))
    if not lines:
        return []
    about = "Bars are 95% bootstrap intervals over prompts."
    return [figure_of(Chart("pass@1 on held-out prompts", lines, limits=SHARE), about)]


def _set_names(moments: Sequence[Moment]) -> list[str]:
    return list(dict.fromkeys(result.name for moment in moments for result in moment.results))


def entropy(run: Run) -> Section:
    coefficients = [Curve(name, name.removeprefix("coef/")) for name in run.metric_names if name.startswith("coef/")]
    divergences = [Curve(name, name.removeprefix("kl/")) for name in run.metric_names if name.startswith("kl/")]
    figures = present(
        curves(
            run,
            "Policy entropy",
            [Curve("entropy/mean_token", "entropy")],
            "Of the next token over the whole vocabulary, mean over loss tokens.",
            unit="nats per token",
        ),
        curves(run, "Divergence", divergences, "old: from the policy that sampled; ref: from the reference."),
        curves(run, "Coefficients of regularisers", coefficients, "As they stood at each step."),
    )
    return _section("entropy", "Entropy", figures, "The run logged no entropy/mean_token.")


def clip_and_ratio(run: Run) -> Section:
    low_high = [Curve("clip/low_frac", "below"), Curve("clip/high_frac", "above")]
    sampler = [Curve("sampler/ess", "effective sample size"), Curve("sampler/masked_frac", "masked")]
    figures = present(
        curves(run, "Tokens outside the clip range", low_high, "Shares of loss tokens on which the clip acts."),
        curves(run, "Ratio", [Curve("ratio/mean", "mean")], "Probability now over that when sampled."),
        curves(run, "Gradient norm", [Curve("grad_norm", "norm")], "Before clipping to trainer.max_grad_norm."),
        curves(
            run, "Sampler mismatch", [Curve("sampler/mismatch_kl", "KL")], "Engine from trainer.", unit="nats per token"
        ),
        curves(run, "Correction for the sampler", sampler, "Shares of tokens.", limits=SHARE),
        curves(
            run,
            "Advantages",
            [Curve("advantage/abs_mean", "mean size"), Curve("advantage/zero_frac", "share of zeros")],
            "A completion with advantage 0 moves nothing.",
        ),
    )
    return _section("clip", "Clip and ratio", figures, "The run logged no clip fractions, ratios or gradient norms.")


def rewards(run: Run) -> Section:
    names = reward_names(run)
    means = [Curve(f"reward/{name}/mean", name) for name in names]
    spreads = [Curve(f"reward/{name}/std", name) for name in names]
    figures = present(
        curves(run, "Reward components", means, "Mean of each function, before its weight."),
        curves(run, "Spread of the components", spreads, "Standard deviation over completions: 0 teaches nothing."),
    )
    verifier = verifier_name(run)
    words = (
        [f"The verifier, which decides whether a completion is right, is {printable(verifier)}."] if verifier else []
    )
    return _section("rewards", "Reward components", figures, "The run logged no reward components.", words)


def lengths(run: Run) -> Section:
    curves_of_length = [
        Curve("completions/mean_length", "mean"),
        Curve("completions/max_length", "longest"),
        Curve("completions/min_length", "shortest"),
        Curve("completions/mean_terminated_length", "mean of those that end"),
    ]
    figures = present(
        curves(run, "Completion length", curves_of_length, "", unit="tokens"),
        curves(
            run,
            "Truncated completions",
            [Curve("completions/truncated_frac", "truncated")],
            "Share stopped by trainer.max_completion_length.",
            limits=SHARE,
        ),
    )
    return _section("lengths", "Lengths and truncation", figures, "The run logged no lengths.")


def verification(run: Run) -> Section:
    failed = [
        Curve("outcome/unscorable_frac", "without a verdict"),
        Curve("verify/timeout_frac", "timed out"),
        Curve("verify/error_frac", "errors"),
        Curve("verify/no_answer_frac", "no answer found"),
    ]
    figures = present(
        curves(run, "Verdicts that failed", failed, "Shares of completions.", limits=SHARE),
        curves(run, "Judgements from the cache", [Curve("verify/cache_hit_frac", "cached")], "", limits=SHARE),
    )
    return _section("verification", "Unscorable and timeouts", figures, "The run logged nothing about its verifier.")


def guidance(run: Run) -> Section | None:
    """None where the run had no guidance."""
    if run.setting("guidance") is None and not _has(run, "guidance/"):
        return None
    if not _has(run, "guidance/"):
        raise Unavailable("The recipe has guidance, but no step logged any.")
    shares = [
        Curve("guidance/needed_frac", "in need"),
        Curve("guidance/helped_frac", "helped"),
        Curve("guidance/success_frac", "accepted of helped"),
        Curve("guidance/leak_frac", "hints refused"),
    ]
    rates = [Curve("outcome/pass_rate", "without help"), Curve("guidance/hinted_pass_rate", "with help")]
    signal = [
        Curve("guidance/signal_plain_frac", "before help"),
        Curve("guidance/signal_frac", "after help"),
    ]
    ratios = [Curve(f"guidance/{name}", name) for name in ("gamma", "ratio_p10", "ratio_p50", "ratio_p90")]
    figures = present(
        curves(run, "Prompts helped", shares, "Shares of the step's prompts, and of hints.", limits=SHARE),
        curves(run, "Pass rate with and without help", rates, "", limits=SHARE),
        curves(run, "Prompts with signal", signal, "Share with right and wrong completions.", limits=SHARE),
        curves(run, "Shaped ratios", ratios, "Where the loss conditions on the prompt without its hint."),
        curves(run, "Completions that help cost", [Curve("guidance/extra_rollouts", "extra")], "Per step."),
    )
    rule = run.setting("guidance.rule")
    words = [f"The rule is {rule}."] if rule else []
    return _section("guidance", "Guidance", figures, "The run logged no curve of its guidance.", words)


def dynamic_sampling(run: Run) -> Section | None:
    """None where the run exchanged no prompts."""
    if not _has(run, "dynamic/"):
        return None
    shares = [Curve("dynamic/without_signal_frac", "without signal"), Curve("dynamic/replaced_frac", "exchanged")]
    figures = present(
        curves(
            run, "Prompts that teach nothing", shares, "All right or all wrong, of the step's prompts.", limits=SHARE
        ),
        curves(run, "Completions of exchanged prompts", [Curve("dynamic/extra_rollouts", "extra")], "Per step."),
    )
    return _section("dynamic", "Dynamic sampling", figures, "The run logged no curve of its dynamic sampling.")


def extrapolation(run: Run) -> Section | None:
    """None where the run made no jumps."""
    if run.setting("extrapolation") is None and not _has(run, "extrapolation/"):
        return None
    jumps, undone = run.series("extrapolation/jump"), run.series("extrapolation/undone")
    if not len(jumps):
        raise Unavailable("The recipe has extrapolation, but no jump was logged.")
    validation = [
        Curve("extrapolation/validation_before", "before the jump"),
        Curve("extrapolation/validation_after", "after the jump"),
    ]
    figures = present(
        curves(run, "Validation pass@1 around jumps", validation, "A jump that lowers it is undone."),
        figure_of(
            Chart(
                "Pass rate and jumps",
                [Line("pass rate", run.series("outcome/pass_rate"))],
                marks=[(int(step), "jump") for step in jumps.steps],
            ),
            "Dotted lines: steps after which the weights jumped.",
        ),
    )
    words = [f"{len(jumps)} jumps, of which {int(undone.values.sum())} were undone."]
    return _section("extrapolation", "Extrapolation", figures, "The run logged no curve of its jumps.", words)


def time_and_tokens(run: Run) -> Section:
    stages = {
        name.removeprefix("time/").removesuffix("_s"): total(run, name)
        for name in run.metric_names
        if name.startswith("time/") and name.endswith("_s") and name not in BETWEEN_STEPS.values()
    }
    whole = total(run, "step_time")
    if not stages and not whole:
        raise Unavailable("The run logged no times.")
    if whole:
        stages["loss and update"] = max(whole - sum(stages.values()), 0.0)
    for stage, name in BETWEEN_STEPS.items():
        if len(run.series(name)):
            stages[stage] = float(run.series(name).values.sum())
    rows = sorted(stages.items(), key=lambda item: -item[1])
    every = sum(stages.values()) or 1.0
    table = Table(
        "Time by stage",
        ["stage", "seconds", "share"],
        [[stage, number(seconds), f"{seconds / every:.1%}"] for stage, seconds in rows],
    )
    svg = draw_bars("Time by stage", [stage for stage, _ in rows], [seconds for _, seconds in rows], "seconds")
    figures = [
        Figure(
            "Time by stage",
            svg,
            "All logged steps, on the main process; evaluations before the first step and at the end are not in it.",
            table,
        )
    ]
    figures += present(
        curves(
            run, "Time of a step", [Curve("step_time", "step"), Curve("time/rollout_s", "rollout")], "", unit="seconds"
        )
    )
    return Section("time", "Time and tokens", figures=figures, tables=[_tokens(run)])


def _tokens(run: Run) -> Table:
    processed = run.series("num_tokens")
    rows = [["read and written by the policy", number(float(processed.values.max()) if len(processed) else None)]]
    for name, label in (
        ("tokens/num_loss", "in the loss"),
        ("dynamic/extra_tokens", "of prompts drawn in place of others"),
        ("guidance/extra_tokens", "of completions with help"),
        ("guidance/hint_rollout_tokens", "of hints that were written"),
    ):
        if len(run.series(name)):
            rows.append([label, number(total(run, name))])
    return Table("Tokens", ["tokens", "number"], rows)


def pass_at_k(run: Run) -> Section:
    if not run.moments:
        raise Unavailable("The run has no evaluations.")
    figures = []
    shown = run.ends or (run.moments[0],)
    for name in _set_names(shown):
        lines = []
        for moment in shown:
            points = [
                (int(metric.removeprefix("pass@")), estimate)
                for result in moment.results
                if result.name == name
                for metric, estimate in result.estimates.items()
                if metric.removeprefix("pass@").isdecimal()
            ]
            points.sort(key=lambda point: point[0])
            if points:
                series = Series(np.array([k for k, _ in points]), np.array([each.value for _, each in points]))
                lines.append(Line(moment.name, series, np.array([[each.low, each.high] for _, each in points])))
        if lines:
            chart = Chart(f"pass@k on {name}", lines, x_label="k", limits=SHARE, log_x=True)
            figures.append(figure_of(chart, "Unbiased estimates; bars are 95% intervals over prompts."))
    return _section("passk", "pass@k", figures, "The evaluations have no pass@k.")


def changes_table(run: Run) -> Table | None:
    """Every metric at both ends; None where there are not two evaluations."""
    changes = change_of(run)
    rows = [
        [
            f"{each.set_name}{'' if each.is_test else ' (validation)'} {each.metric}",
            each.word,
            interval(each.before),
            interval(each.after),
            f"{signed(each.difference)}{p_value_in_words(each.p_value)}",
        ]
        for each in changes
    ]
    if run.ends is None or not rows:
        return None
    headings = ["set and metric", "", run.ends[0].name, run.ends[1].name, "difference"]
    paired = "prompt by prompt" if all(each.p_value is not None for each in changes) else UNPAIRED
    return Table(f"Before and after, mean over prompts [95% interval]; differences {paired}", headings, rows)


def every_metric(run: Run) -> Section:
    rows = []
    for name in sorted(run.metric_names):
        values = run.series(name).values
        numbers = [values[0], values[-1], values.min(), values.mean(), values.max()]
        rows.append([name, *(number(float(each)) for each in numbers), str(len(values))])
    if not rows:
        raise Unavailable("No step was logged.")
    headings = ["metric", "first", "last", "least", "mean", "largest", "logged"]
    words = ["Names as in metrics.jsonl; wandb, trackio and tensorboard have them behind train/."]
    return Section("metrics", "Every metric", words, tables=[Table("Every metric", headings, rows)])


def _has(run: Run, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in run.metric_names)


def _section(id: str, title: str, figures: Sequence[Figure], missing: str, words: Sequence[str] = ()) -> Section:
    if not figures:
        raise Unavailable(missing)
    return Section(id, title, words, figures)


# (id, title, what builds it; None from a builder leaves the section out)
SECTIONS: tuple[tuple[str, str, Callable[[Run], Section | None]], ...] = (
    ("learning", "Learning curves", learning),
    ("passk", "pass@k", pass_at_k),
    ("beyond", "Beyond the base model?", beyond),
    ("entropy", "Entropy", entropy),
    ("clip", "Clip and ratio", clip_and_ratio),
    ("rewards", "Reward components", rewards),
    ("lengths", "Lengths and truncation", lengths),
    ("verification", "Unscorable and timeouts", verification),
    ("dynamic", "Dynamic sampling", dynamic_sampling),
    ("guidance", "Guidance", guidance),
    ("extrapolation", "Extrapolation", extrapolation),
    ("time", "Time and tokens", time_and_tokens),
    ("metrics", "Every metric", every_metric),
)


def sections_of(run: Run) -> list[Section]:
    """Every section, and in place of one that cannot be built a sentence that says why."""
    built = []
    for id, title, build in SECTIONS:
        try:
            section = build(run)
        except Unavailable as reason:
            section = Section(id, title, missing=str(reason))
        if section is not None:
            built.append(section)
    return built


def verdict_notes(run: Run) -> list[str]:
    """What a reader of the verdict should know about it."""
    return [*moments_in_words(run), *run.notes]
