"""Known ways in which RLVR goes wrong, looked for in a run's numbers. The thresholds are rules of thumb.

Every rule is a function of a run that returns what it found, or None. To add one, write it and name it in ALARMS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlvr.reporting.report.records import Run
from rlvr.reporting.report.trends import LEAST_STEPS, Trend, late_mean, trend
from rlvr.reporting.report.verdict import change_of

FLAT = 0.02  # a change of a pass rate below which it counts as none
KEY_METRICS = ("loss", "grad_norm", "reward/mean")


@dataclass(frozen=True)
class Alarm:
    """A pattern that was found. `tries` are recipe keys, and what to do with each."""

    title: str
    severity: Literal["problem", "watch"]
    evidence: str
    tries: Mapping[str, str]


def _over(found: Trend) -> str:
    return f"steps {found.early_steps[0]}-{found.early_steps[1]} to {found.late_steps[0]}-{found.late_steps[1]}"


def entropy_collapse(run: Run) -> Alarm | None:
    """The policy has become nearly deterministic: less than a tenth of its entropy and of 0.1 nats is left."""
    entropy, passed = trend(run, "entropy/mean_token"), trend(run, "outcome/pass_rate")
    if entropy is None or entropy.late > 0.1 or entropy.late > 0.1 * entropy.early:
        return None
    is_solved = passed is not None and passed.late > 0.9
    rest = "" if passed is None else f", while the pass rate is {passed.late:.2f}"
    return Alarm(
        "entropy collapse",
        "watch" if is_solved else "problem",
        f"The entropy per token fell from {entropy.early:.3g} to {entropy.late:.3g} nats ({_over(entropy)}){rest}."
        " Completions of a prompt hardly differ any more, so little is left to learn from.",
        {
            "algorithm.clip_high": "raise it above clip_low (0.28 in DAPO), so that rare tokens may gain",
            "regularizers.entropy": "give it a coefficient, or take regularizers.kl_cov or clip_cov",
            "trainer.learning_rate": "lower it",
            "trainer.temperature": "raise it a little",
        },
    )


def length_hacking(run: Run) -> Alarm | None:
    """Completions grow by half or more while the pass rate stays where it was."""
    length, passed = trend(run, "completions/mean_length"), trend(run, "outcome/pass_rate")
    if length is None or passed is None or length.late < 1.5 * length.early or passed.change > FLAT:
        return None
    return Alarm(
        "length grows without a gain",
        "problem",
        f"The mean length went from {length.early:.0f} to {length.late:.0f} tokens ({_over(length)}) and the pass rate"
        f" from {passed.early:.2f} to {passed.late:.2f}.",
        {
            "algorithm.aggregation": "take token_mean or constant: sequence_mean punishes long wrong answers less",
            "rewards.functions": "add soft_overlong or cosine_length, or look for a reward that length buys",
            "trainer.max_completion_length": "lower it",
        },
    )


def format_only(run: Run) -> Alarm | None:
    """A reward that is not the verifier's rises while the verifier's pass rate does not."""
    passed, verifier = trend(run, "outcome/pass_rate"), verifier_name(run)
    if passed is None or passed.change > FLAT or verifier is None:
        return None
    parts = {name: trend(run, f"reward/{name}/mean") for name in reward_names(run) if name != verifier}
    risen = {name: each for name, each in parts.items() if each is not None and each.change > 0.1}
    if not risen:
        return None
    name, most = max(risen.items(), key=lambda item: item[1].change)
    return Alarm(
        "gains in form only",
        "problem",
        f"The reward {name} rose from {most.early:.2f} to {most.late:.2f} ({_over(most)}), the pass rate of the"
        f" verifier {verifier} went from {passed.early:.2f} to {passed.late:.2f}.",
        {
            "rewards.functions": f"lower the weight of {name}",
            "rewards.gate": f"set it to {verifier}, so that a wrong answer earns nothing else",
        },
    )


def sampler_mismatch(run: Run) -> Alarm | None:
    """The engine that samples and the trainer give tokens different probabilities."""
    divergence, ess = late_mean(run, "sampler/mismatch_kl"), late_mean(run, "sampler/ess")
    if (divergence is None or divergence <= 0.01) and (ess is None or ess >= 0.8):
        return None
    shown = [f"KL(sampler || trainer) {divergence:.3g} nats per token"] if divergence is not None else []
    shown += [f"effective sample size {ess:.2f} of the tokens"] if ess is not None else []
    return Alarm(
        "sampler mismatch",
        "problem",
        f"At the end: {', '.join(shown)}. The gradient is of completions that the trained policy would not sample.",
        {
            "algorithm.mismatch": "correct for it: token_tis or sequence_mask",
            "model.dtype": "use the dtype of the engine, or float16 in both",
            "trainer.cast_lm_head_to_fp32": "set it to true",
        },
    )


def all_solved(run: Run) -> Alarm | None:
    """Most groups are right throughout: their advantages are zero."""
    solved = trend(run, "groups/solved_frac")
    if solved is None or solved.late < 0.8:
        return None
    return Alarm(
        "nearly all groups solved",
        "watch",
        f"In {solved.late:.0%} of the groups every completion is right ({_over(solved)}, {solved.early:.0%} before):"
        " only the others teach anything.",
        {
            "data.train": "use harder prompts",
            "regularizers.mastered_mask": "leave mastered prompts out of the loss",
            "trainer.max_steps": "stop earlier",
        },
    )


def all_unsolved(run: Run) -> Alarm | None:
    """Most groups are wrong throughout."""
    unsolved = trend(run, "groups/unsolved_frac")
    if unsolved is None or unsolved.late < 0.8:
        return None
    return Alarm(
        "nearly all groups unsolved",
        "problem",
        f"No answer is right in {unsolved.late:.0%} of the groups ({_over(unsolved)}, {unsolved.early:.0%} before).",
        {
            "data.train": "use easier prompts",
            "guidance": "help prompts that the policy cannot solve yet",
            "trainer.num_generations": "sample more completions per prompt",
            "rewards.verifier": "try it by `rlvr rewards check`: it may not know a right answer",
        },
    )


def unscorable(run: Run) -> Alarm | None:
    """The verifier gave no verdict on more than one completion in twenty."""
    found = trend(run, "outcome/unscorable_frac")
    if found is None or max(found.early, found.late) <= 0.05:
        return None
    return Alarm(
        "completions without a verdict",
        "problem",
        f"{found.early:.0%} of the completions had none at first, {found.late:.0%} at the end ({_over(found)}).",
        {
            "rewards.verifier": "try it by `rlvr rewards check`",
            "data.self_check": "set it to drop, so that prompts without a usable reference are left out",
        },
    )


def timeouts(run: Run) -> Alarm | None:
    found = trend(run, "verify/timeout_frac")
    if found is None or max(found.early, found.late) <= 0.02:
        return None
    return Alarm(
        "the verifier runs out of time",
        "problem",
        f"{found.early:.1%} of the judgements timed out at first, {found.late:.1%} at the end ({_over(found)}).",
        {
            "rewards.timeout_s": "raise it",
            "rewards.cpu_s": "raise it",
            "rewards.workers": "set it to the number of cores",
        },
    )


def truncation(run: Run) -> Alarm | None:
    found = trend(run, "completions/truncated_frac")
    if found is None or found.late <= 0.2:
        return None
    return Alarm(
        "many completions are cut off",
        "problem",
        f"{found.late:.0%} of the completions reach trainer.max_completion_length ({_over(found)}, {found.early:.0%}"
        " before).",
        {
            "trainer.max_completion_length": "raise it",
            "algorithm.overlong_filter": "set it to true, so that a cut answer is not punished as a wrong one",
            "rewards.functions": "add soft_overlong",
        },
    )


def clipping(run: Run) -> Alarm | None:
    """Over a fifth of the tokens are outside of the clip range."""
    low, high = late_mean(run, "clip/low_frac"), late_mean(run, "clip/high_frac")
    if low is None or high is None or low + high <= 0.2:
        return None
    return Alarm(
        "many tokens are clipped",
        "watch",
        f"At the end {low:.1%} of the tokens are below and {high:.1%} above the clip range: an update moves the policy"
        " further than the loss allows for.",
        {
            "trainer.learning_rate": "lower it",
            "trainer.num_iterations": "lower it",
            "trainer.steps_per_generation": "lower it",
        },
    )


def gradient_spikes(run: Run) -> Alarm | None:
    """The norm of the gradient jumps to ten times its median and above 1."""
    series = run.series("grad_norm")
    if len(series) < LEAST_STEPS:
        return None
    median = float(np.median(series.values))
    high = (series.values > 10 * median) & (series.values > 1.0)
    if not high.any():
        return None
    worst = int(np.argmax(series.values))
    return Alarm(
        "spikes of the gradient norm",
        "watch",
        f"{_times(int(high.sum()))} above ten times the median of {median:.3g}, at {_steps(series.steps[high])}; the"
        f" largest is {series.values[worst]:.3g} at step {series.steps[worst]}.",
        {"trainer.max_grad_norm": "lower it", "trainer.learning_rate": "lower it", "trainer.warmup_steps": "raise it"},
    )


def not_finite(run: Run) -> Alarm | None:
    """The loss, the gradient or the reward was not finite, or steps were left out for it."""
    skipped = run.series("watch/skipped_steps")
    count = int(skipped.values.max()) if len(skipped) else 0
    missing = {name: run.missing_at(name) for name in KEY_METRICS if run.missing_at(name)}
    if not count and not missing:
        return None
    parts = [f"{count} steps were left out"] if count else []
    parts += [f"{name} has no finite value at {_steps(np.array(steps))}" for name, steps in missing.items()]
    return Alarm(
        "values that are not finite",
        "problem",
        "; ".join(parts).capitalize() + ".",
        {"trainer.bf16": "prefer it to fp16", "model.dtype": "try float32", "trainer.learning_rate": "lower it"},
    )


def training_only(run: Run) -> Alarm | None:
    """The pass rate of training prompts rises, that of a test set falls."""
    passed = trend(run, "outcome/pass_rate")
    if passed is None or passed.change <= FLAT or run.ends is None:
        return None
    worse = [each for each in change_of(run) if each.metric == "pass@1" and each.is_test and each.word == "worse"]
    if not worse:
        return None
    return Alarm(
        "gains on training prompts only",
        "problem",
        f"Training pass rate {passed.early:.2f} to {passed.late:.2f}; pass@1 on {worse[0].set_name}"
        f" {worse[0].before.value:.3f} to {worse[0].after.value:.3f}. The reward may be hacked, or prompts learnt by"
        " heart.",
        {
            "algorithm.kl_coef": "hold the policy closer to where it began",
            "data.train": "use more prompts",
            "checkpoints.keep_best": "keep the best checkpoint by a validation set",
        },
    )


def narrowing(run: Run) -> Alarm | None:
    """pass@1 rises and pass@k of the largest k falls: answers that were there before are lost."""
    for name in {each.set_name for each in change_of(run) if each.is_test}:
        by_k = {each.k: each for each in change_of(run) if each.set_name == name and each.k is not None}
        if len(by_k) > 1 and 1 in by_k and by_k[1].word == "better" and by_k[max(by_k)].word == "worse":
            first, most = by_k[1], by_k[max(by_k)]
            return Alarm(
                "fewer prompts within reach",
                "watch",
                f"On {name} pass@1 went from {first.before.value:.3f} to {first.after.value:.3f} but {most.metric} from"
                f" {most.before.value:.3f} to {most.after.value:.3f}: the policy is surer and solves fewer prompts.",
                {
                    "regularizers.lp_reg": "protect tokens that are rare and useful",
                    "algorithm.clip_high": "raise it",
                    "algorithm.kl_coef": "hold the policy closer to where it began",
                },
            )
    return None


ALARMS: Mapping[str, Callable[[Run], Alarm | None]] = {
    "not_finite": not_finite,
    "training_only": training_only,
    "format_only": format_only,
    "length_hacking": length_hacking,
    "entropy_collapse": entropy_collapse,
    "sampler_mismatch": sampler_mismatch,
    "all_unsolved": all_unsolved,
    "all_solved": all_solved,
    "unscorable": unscorable,
    "timeouts": timeouts,
    "truncation": truncation,
    "clipping": clipping,
    "gradient_spikes": gradient_spikes,
    "narrowing": narrowing,
}


def alarms_of(run: Run) -> dict[str, Alarm]:
    """What was found, problems first."""
    found = {name: alarm for name, rule in ALARMS.items() if (alarm := rule(run)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1].severity != "problem"))


def reward_names(run: Run) -> list[str]:
    """The labels of the reward functions, from their metrics."""
    parts = [name.split("/") for name in run.metric_names]
    return [part[1] for part in parts if len(part) == 3 and part[0] == "reward" and part[2] == "mean"]


def verifier_name(run: Run) -> str | None:
    """The label of the function that decides the outcome; None where the recipe is not known."""
    named = run.setting("rewards.verifier")
    if isinstance(named, str):
        return named
    functions = run.setting("rewards.functions")
    if not isinstance(functions, list) or not functions or not isinstance(functions[0], Mapping):
        return None
    return str(functions[0].get("name") or functions[0].get("use"))


def _times(count: int) -> str:
    return "Once" if count == 1 else f"{count} times"


def _steps(steps: np.ndarray) -> str:
    shown = ", ".join(str(step) for step in steps[:5])
    more = f" and {len(steps) - 5} more" if len(steps) > 5 else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"
