"""The faults planted in the check of the engine, in continuous batching and in settings for a while."""

AGREEMENT, CHECK, PROBE = (f"rollout/{each}.py" for each in ("agreement", "engine_check", "probe"))
CONTINUOUS, SETTINGS, RECORD = (f"rollout/{each}.py" for each in ("continuous", "settings", "rollouts"))
ROWS, CONFIG = "rollout/rows.py", "config/rollout.py"

_IN_CHECK, _IN_CONTINUOUS = "tests/unit/test_engine_check.py::", "tests/unit/test_continuous_batching.py::"
_IN_SETTINGS, _IN_CONFIG = "tests/unit/test_engine_settings.py::", "tests/unit/test_config_rollout.py::"
_IDENTICAL = _IN_CHECK + "test_training_is_bit_identical_with_and_without_it"
_PROBED = _IN_CHECK + "test_probe_has_the_probabilities_that_tokens_were_drawn_by"
_LEFT = _IN_CHECK + "test_it_leaves_generators_settings_and_mode"
_BY_HAND = _IN_CHECK + "test_agreement_by_hand"
_PHASES = _IN_CHECK + "test_it_runs_before_each_generation_phase_once"
_PRECISION = _IN_CONTINUOUS + "test_mixed_precision_samples_from_rounded_weights_and_trains_the_exact_ones"
_ROLLOUTS = _IN_CONTINUOUS + "test_rollouts_end_where_the_policy_ends_them"
_LEFT_OUT = _IN_CHECK + "test_tokens_that_a_recipe_leaves_out_are_no_disagreement"
_SERVER = _IN_SETTINGS + "test_evaluation_asks_a_server_for_each_prompt"

# (file under rlvr/, old text, new text, description, test)
ENGINE_FAULTS: tuple[tuple[str, str, str, str, str], ...] = (
    (AGREEMENT, "torch.expm1(log_rho).abs()", "torch.expm1(log_rho)", "deviations cancel", _BY_HAND),
    (AGREEMENT, "~engine_logprobs.isnan()", "engine_logprobs.isnan()", "only unscored tokens", _BY_HAND),
    (
        AGREEMENT,
        ".clamp(-LOG_LIMIT, LOG_LIMIT)",
        "",
        "ratios overflow",
        _IN_CHECK + "test_ratios_that_overflow_are_a_disagreement",
    ),
    (CHECK, "        with own_random_numbers():\n", "        if True:\n", "draws from the run's generators", _LEFT),
    (CHECK, "            set_seed(seed)\n", "", "depends on what was drawn before", _LEFT),
    (CHECK, "        self._checked_at = step\n", "", "twice at the start", _PHASES),
    (CHECK, "and self.host.is_sampling_due()", "", "before steps that sample nothing", _PHASES),
    (
        CHECK,
        "if not found.dev_mean <=",
        "if found.dev_mean >",
        "no log-probs pass",
        _IN_CHECK + "test_an_engine_without_logprobs_is_refused",
    ),
    (
        CHECK,
        "found.dev_mean <= self",
        "abs(found.ratio_mean - 1) <= 1e3 * self",
        "mean ratio judged",
        _IN_CHECK + "test_perturbed_weights_are_found_at_the_start",
    ),
    (
        CHECK,
        "FLOAT32_TOLERANCE if self.host.is_float32",
        "FLOAT32_TOLERANCE if True",
        "16 bits held to float32",
        _IN_CHECK + "test_default_bound_is_that_of_the_precision",
    ),
    (
        PROBE,
        "if name not in added",
        "",
        "settings of generation_kwargs hidden",
        _IN_CHECK + "test_settings_behind_the_back_of_the_loss_are_found",
    ),
    (PROBE, '{"top_p": 1.0, "top_k": 0,', '{"top_k": 0,', "tokens left out", _PROBED),
    (PROBE, "        del model.generate\n", "        pass\n", "generate stays wrapped", _LEFT),
    (PROBE, "row[:length]", "row[-length:]", "log-probs of padding", _PROBED),
    (PROBE, ' | {"seed": seed}', "", "moves vLLM's random numbers", _IDENTICAL),
    (PROBE, ", without=added.keys() - SET_BY_TRL", "", "tokens left out by generation_kwargs", _LEFT_OUT),
    (PROBE, " if k in SET_BY_TRL}", "}", "tokens left out by vLLM", _LEFT_OUT),
    (SETTINGS, "    trainer.num_generations_eval = 1\n", "", "prompts of others from a server", _SERVER),
    (
        SETTINGS,
        "        vars(engine).update(kept)\n",
        "        pass\n",
        "settings of vLLM stay",
        _IN_SETTINGS + "test_settings_come_back_after_an_error",
    ),
    (
        CONTINUOUS,
        "            model.train(was_training)\n",
        "            pass\n",
        "left in evaluation mode",
        _ROLLOUTS,
    ),
    (
        CONTINUOUS,
        "    finally:\n        for parameter, values in kept:\n",
        "    finally:\n        for parameter, values in []:\n",
        "weights stay rounded",
        _PRECISION,
    ),
    (CONTINUOUS, "return_logprobs=True", "return_logprobs=False", "no log-probs", _ROLLOUTS),
    (
        CONTINUOUS,
        "drop_unsupported_processors=False",
        "drop_unsupported_processors=True",
        "settings ignored",
        _IN_CONTINUOUS + "test_settings_that_the_engine_would_ignore_are_refused",
    ),
    (
        CONTINUOUS,
        "[outputs[name].generated_tokens for name in names]",
        "[each.generated_tokens for each in outputs.values()]",
        "in order of completion",
        _IN_CONTINUOUS + "test_greedy_completions_of_each_prompt_in_order",
    ),
    (
        RECORD,
        'return float("nan") if logprob is None else logprob',
        "return logprob or 0.0",
        "unknown is certain",
        _IN_SETTINGS + "test_a_token_without_a_logprob_is_unknown",
    ),
    (
        ROWS,
        ' or [float("nan")] * len(each.completion_ids)',
        " or []",
        "answers of a teacher without length",
        _IN_SETTINGS + "test_answers_that_no_engine_drew_have_unknown_logprobs",
    ),
    (CONFIG, "if name in FIELDS:", "if name in ():", "settings given twice", _IN_CONFIG + "test_mistakes"),
)
