"""The faults planted in the extrapolation of logits, and the tests that are to catch them."""

LOGITS, RUNNING = "extrapolation/logits.py", "extrapolation/logits_running.py"

# (file under rlvr/, old text, new text, description)
LOGITS_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (LOGITS, "extrapolate(base, tuned, alpha))", "extrapolate(tuned, base, alpha))", "base and tuned swapped"),
    (
        LOGITS,
        "torch.where(base == tuned, tuned, extrapolate(base, tuned, alpha))",
        "extrapolate(base, tuned, alpha)",
        "NaN for tokens that both rule out",
    ),
    (
        LOGITS,
        "torch.promote_types(torch.promote_types(base.dtype, tuned.dtype), torch.float32)",
        "torch.promote_types(base.dtype, tuned.dtype)",
        "arithmetic in 16 bits",
    ),
    (LOGITS, "return given.tuned, given.base", "return given.tuned, None", "the base forgets"),
    (LOGITS, "return given.tuned, given.base", "return given.base, given.tuned", "each model reads the other's cache"),
    (LOGITS, "layers=[*tuned.layers, *base.layers]", "layers=[*tuned.layers]", "beams reach one cache only"),
    (LOGITS, '"position_ids": position_ids,', '"position_ids": None,', "positions of padding counted"),
    (
        LOGITS,
        "base = model(**given, past",
        "base = model(**{**given, 'attention_mask': None}, past",
        "the base attends to padding",
    ),
    (LOGITS, "layer._disable_adapters = True", "layer._disable_adapters = False", "the base's pass has the adapter"),
    (LOGITS, "                layer._disable_adapters = False", "                pass", "the adapter never comes back"),
    (LOGITS, "        self.eval()\n", "        pass\n", "dropout while decoding"),
    (LOGITS, "if isinstance(layer, Switch)]", "if isinstance(layer, BaseTunerLayer)]", "whole trained modules stay on"),
    (LOGITS, "    check_same_tokens(tokenizer, tuned_tokenizer)\n", "", "other tokenizers taken"),
    (LOGITS, 'if biases != {"none"} or', "if", "trained biases kept in the base"),
    (LOGITS, "copy.deepcopy(own.generation_config)", "self.generation_config", "defaults of the tuned model dropped"),
    (LOGITS, "and given.get_seq_length() == 0", "", "a cache of one model taken for two"),
    (LOGITS, "        _check_alpha(alpha)\n", "        pass\n", "alpha NaN taken"),
    (LOGITS, "with_adapter(below, base) if is_adapter(base) else below", "below", "adapter of the base dropped"),
    (LOGITS, '"dtype": dtype,', '"dtype": "auto",', "dtype not obeyed"),
    (RUNNING, '"top_k": 0, ', "", "the model's own top-k used"),
    (RUNNING, '"top_p": self.top_p, ', "", "the model's own top-p used"),
    (RUNNING, "            repetition_penalty=1.0,\n", "", "the model's own penalty used"),
    (RUNNING, "    set_seed(sampling.seed)\n", "", "no seed"),
    (RUNNING, "\\n{printable(completion)}", "\\n{completion}", "control characters of completions reach the terminal"),
    (RUNNING, "\\n{printable(prompt)}", "\\n{prompt}", "control characters of prompts reach the terminal"),
    (
        RUNNING,
        "evaluate_model(loaded, model, which, console)",
        'evaluate_model(loaded, model, "test", console)',
        "test sets for validation",
    ),
    (
        RUNNING,
        "if not (uses_chat and tokenizer.chat_template)",
        "if not tokenizer.chat_template",
        "--no-chat not obeyed",
    ),
    (
        RUNNING,
        '    check_same_tokens(load_tokenizer(config), tokenizer, ("the recipe\'s model.path", "the two models"))\n',
        "",
        "prompts in another model's tokens",
    ),
    (RUNNING, "~torch.isin(tokens, torch.tensor(ends", "torch.isin(tokens, torch.tensor(ends", "cut and ended swapped"),
    (RUNNING, "if bool(logits.isnan().any())", "if bool(logits.isinf().any())", "NaN sampled from"),
    (LOGITS, "if not abs(alpha) <=", "if abs(alpha) >", "alpha NaN is not beyond the limit"),
)

BOTH_TESTS = ("tests/unit/test_extrapolation_logits.py", "tests/unit/test_extrapolation_logits_commands.py")
LOGITS_TESTS: dict[str, tuple[str, ...]] = {LOGITS: BOTH_TESTS, RUNNING: BOTH_TESTS[1:]}
