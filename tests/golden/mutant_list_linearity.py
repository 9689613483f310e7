"""The faults planted in the measures of linearity, in what is read for them, and in the completions."""

LINEARITY, MEASURE = "extrapolation/linearity.py", "extrapolation/linearity_measure.py"
LOGPROBS, REPORT = "extrapolation/linearity_logprobs.py", "extrapolation/linearity_report.py"

GOLDEN, RUNS = ("tests/golden/test_linearity.py",), ("tests/unit/test_linearity.py",)
COMPLETIONS = ("tests/unit/test_linearity_logprobs.py",)
LINEARITY_TESTS = {
    LINEARITY: GOLDEN,
    MEASURE: (*GOLDEN, *RUNS, *COMPLETIONS),
    LOGPROBS: COMPLETIONS,
    REPORT: (*RUNS, *COMPLETIONS),
}

# (file under rlvr/, old text, new text, description)
LINEARITY_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (LINEARITY, "when = (when - when.mean()).unsqueeze(1)", "when = when.unsqueeze(1)", "R^2: steps not centred"),
    (LINEARITY, "moves = moves - moves.mean(dim=0)", "moves = moves + 0.0", "R^2: values not centred"),
    (LINEARITY, "values.double() - values[0].double()", "values - values[0]", "R^2: in the dtype of the checkpoint"),
    (LINEARITY, "(moves * when).sum(dim=0).square()", "(moves * when).sum(dim=0).abs()", "R^2: not squared"),
    (LINEARITY, ".clamp(max=1.0)", "", "R^2: above 1"),
    (LINEARITY, "1 + (ordered.diff(dim=0) != 0)", "(ordered.diff(dim=0) != 0)", "keep: one value too few"),
    (LINEARITY, "ordered = values.double().sort(dim=0).values", "ordered = values.double()", "keep: not ordered"),
    (LINEARITY, "> min_range) & (distinct", "> min_range) | (distinct", "keep: either rule"),
    (LINEARITY, "> min_range) &", ">= min_range) &", "keep: a range of the threshold"),
    (LINEARITY, "distinct >= min_distinct", "distinct > min_distinct", "keep: more than so many values"),
    (LINEARITY, "logprobs[0].double()).abs() > min_move", "logprobs[0].double()) > min_move", "tokens: risen only"),
    (LINEARITY, "[0.25, 0.5, 0.75]", "[0.05, 0.5, 0.95]", "quartiles"),
    (LINEARITY, "(r2 > LINEAR_ABOVE)", "(r2 >= LINEAR_ABOVE)", "share: the bound itself"),
    (LINEARITY, ".clamp(0, HISTOGRAM_BINS - 1)", "", "histogram: 1 has a bin of its own"),
    (
        LINEARITY,
        "moves = values.double().diff(dim=0)\n",
        "moves = values.double()[1:]\n",
        "windows: no moves",
    ),
    (LINEARITY, "/ lengths.unsqueeze(1) / lengths", "/ lengths.unsqueeze(1) ** 2", "cosine: one length twice"),
    (MEASURE, "math.ceil(rule.share * numel)", "math.ceil(numel)", "sample: everything"),
    (MEASURE, 'derived_seed(rule.seed, "linearity", name)', "rule.seed", "sample: the same places in each tensor"),
    (MEASURE, "here = places[(places >= before)", "here = places[(places > before)", "sample: first of a block lost"),
    (MEASURE, "& (places < before + values.shape[1])] - before", "& (places < before + values.shape[1])]", "places"),
    (MEASURE, "products += window_products(values)", "products[:] = window_products(values)", "products of one block"),
    (MEASURE, "deltas.append(values[-1] - values[0])", "deltas.append(values[-1] - values[-2])", "rank: last window"),
    (MEASURE, "values = values[values > noise]", "values = values[values > 0.0]", "rank: with the noise"),
    (MEASURE, "if step not in found and (view", "if (view", "two checkpoints of one step: the last"),
    (MEASURE, "found.setdefault(0, start)", "pass", "no base model"),
    (MEASURE, "open_checkpoint(path, base)", "open_checkpoint(path)", "adapters: only the base they name"),
    (MEASURE, "if (error := sources.not_finite", "if False and (error := sources.not_finite", "NaN passes"),
    (LOGPROBS, "row[: row.index(tokenizer.eos_token_id) + 1]", "row[: row.index(tokenizer.eos_token_id)]", "no end"),
    (LOGPROBS, "for _ in range(plan.samples)", "for _ in range(1)", "one sample"),
    (LOGPROBS, "do_sample=True", "do_sample=False", "greedy"),
    (LOGPROBS, "with torch.random.fork_rng():", "if True:", "the caller's random numbers"),
    (LOGPROBS, 'if content["settings"] != json', 'if content["settings"] == json', "completions of another plan"),
    (LOGPROBS, "load_weights(model, view)", "pass", "all checkpoints alike"),
    (LOGPROBS, "TEMPERATURE = 1.0", "TEMPERATURE = 0.9", "log-probabilities at another temperature"),
    (
        LOGPROBS,
        "torch.cat([found[index] for index in range(len(completions))])",
        "torch.cat([*found.values()])",
        "order",
    ),
    (REPORT, "places[each]].tolist()", "each].tolist()", "examples: of all tokens"),
    (REPORT, "sum(each.looked_at for each in tensors)", "len(_r2(tensors))", "kept share of those kept"),
)
