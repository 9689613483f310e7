"""The faults planted in the search for alpha, in held-out sets and in evaluation without a trainer."""

SEARCH, RUNNING, CACHE = (f"extrapolation/search{each}.py" for each in ("", "_running", "_cache"))
SETS, GENERATING, STANDALONE = "evaluation/sets.py", "rollout/generating.py", "evaluation/standalone.py"

# (file under rlvr/, old text, new text, description)
SEARCH_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (SEARCH, "scores[name][prompt_id] - theirs[prompt_id] for", "scores[name][prompt_id] for", "no difference taken"),
    (SEARCH, "if prompt_id in scores[name]]", "]", "prompts that only one alpha scored"),
    (SEARCH, "for name, theirs in reference.items()", "for name, theirs in [*reference.items()][:1]", "first set only"),
    (SEARCH, "each[picks].mean(axis=1) / len(values)", "each[picks].mean(axis=1)", "sum over sets"),
    (SEARCH, "each[picks]", "each[picks[:, :-1]]", "one prompt too few in each resample"),
    (SEARCH, "return difference.high < 0.0", "return difference.value < 0.0", "worse without an interval"),
    (SEARCH, "return difference.low > 0.0", "return difference.value > 0.0", "better without an interval"),
    (SEARCH, "-abs(alpha - TUNED))", "abs(alpha - TUNED))", "of equal alphas the farthest"),
    (
        SEARCH,
        "or not is_worse(against[alpha]):\n            break",
        "or not is_worse(against[alpha]):\n            continue",
        "worse from the first dip on",
    ),
    (SEARCH, "== max(self.means) > TUNED", "== max(self.means)", "advice to go beyond alpha = 1 itself"),
    (
        SEARCH,
        "if alpha not in scored and (limit is None or alpha < limit):",
        "if alpha not in scored:",
        "start goes beyond a collapse",
    ),
    (SEARCH, "[*inside, limit]", "inside", "no limit above the best"),
    (SEARCH, "if max(below, above) <= FINEST:", "if min(below, above) <= FINEST:", "search ends with the narrower gap"),
    (SEARCH, "if above >= below else", "if above < below else", "the narrower gap is divided"),
    (SEARCH, "(1.0 - GOLDEN) / GOLDEN", "(1.0 - GOLDEN)", "step beyond the end too small"),
    (SEARCH, "if len(scored) >= max_evaluations:", "if len(scored) > max_evaluations:", "one evaluation too many"),
    (
        SEARCH,
        "if len(rewards) == len(record.rewards) else None",
        "if rewards else None",
        "mean of the rewards there are",
    ),
    (RUNNING, '{"alpha": alpha}, subject.sources', '{"alpha": 1.0}, subject.sources', "always the tuned model"),
    (
        RUNNING,
        'compute("extrapolate", {"alpha": found.best}',
        'compute("extrapolate", {"alpha": 1.0}',
        "not the best model",
    ),
    (RUNNING, "{search.TUNED, best} - kept.keys()", "{search.TUNED, best}", "tests evaluated again"),
    (RUNNING, '_evaluated(subject, alpha, "validation"', '_evaluated(subject, alpha, "test"', "chosen by the tests"),
    (CACHE, "if kept.get(name) != value:", "if name not in kept:", "goes on with other settings"),
    (SETS, "    check_disjoint(sets)\n", "", "shared prompts pass"),
    (SETS, "if key in keys]", "if key in keys and len(keys) > 9]", "small test sets pass"),
    (GENERATING, "[pad] * (width - len(each)) + each", "each + [pad] * (width - len(each))", "padded on the right"),
    (GENERATING, "len(ids)) + 1]", "len(ids))]", "completions without their end"),
    (GENERATING, "            **evaluation_options(temperature),\n", "", "always sampled at temperature 1"),
    (GENERATING, '"top_k", "min_p"', '"min_p"', "top_k of the run forgotten"),
    (GENERATING, "self.model.train(was_training)", "self.model.train()", "model left in training mode"),
    (STANDALONE, "            each.forward = forward\n", "            pass\n", "forward stays wrapped"),
)
_DECISIONS, _ON_MODELS = ("tests/unit/test_search_decisions.py",), ("tests/unit/test_search_alpha.py",)
_STANDALONE = ("tests/unit/test_standalone_evaluation.py",)
SEARCH_TESTS: dict[str, tuple[str, ...]] = {
    SEARCH: _DECISIONS,
    RUNNING: _ON_MODELS,
    CACHE: _ON_MODELS,
    SETS: _STANDALONE,
    GENERATING: _STANDALONE,
    STANDALONE: _STANDALONE,
}
