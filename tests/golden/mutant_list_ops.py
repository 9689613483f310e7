"""The faults planted in the statistics of the vocabulary distribution and in how a head is read."""

STATS, ROWS, NUCLEUS, MODEL = "ops/token_stats.py", "ops/head_rows.py", "ops/nucleus.py", "policy.py"

# (file under rlvr/, old text, new text, description)
OPS_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (NUCLEUS, "& (p > 0.5)", "& (p > 0.0)", "ties of the likeliest token not split"),
    (NUCLEUS, "dtype=torch.float64) <= 1.0)", "dtype=torch.float64) <= 1.5)", "rows that need a search taken as sure"),
    (NUCLEUS, "cut[unsure], tie_bound[unsure] = ", "cut[~sure.flip(0)], tie_bound[unsure] = ", "cut of another row"),
    (
        ROWS,
        "factor = rule.logit_scale / rule.temperature",
        "factor = rule.logit_scale * rule.temperature",
        "temperature multiplied",
    ),
    (ROWS, "factor = rule.logit_scale / rule.temperature", "factor = rule.logit_scale", "temperature ignored"),
    (ROWS, "log_total - (weights * shifted)", "log_total + (weights * shifted)", "sign of the mean energy"),
    (ROWS, "logits.amax(dim=-1)", "logits.amin(dim=-1)", "overflow"),
    (
        ROWS,
        "grad * (rule.logit_scale / rule.temperature)",
        "grad * rule.logit_scale",
        "temperature missing in the gradient",
    ),
    (ROWS, '(saved["entropy"] - log_total)', '(saved["entropy"] + log_total)', "entropy gradient off"),
    (ROWS, "gradient *= slope", "gradient *= 1.0", "slope of the cap forgotten"),
    (
        ROWS,
        ".mul_(per_weight.unsqueeze(-1)).mul_(inside)",
        ".mul_(per_weight.unsqueeze(-1))",
        "nucleus gradient outside",
    ),
    (ROWS, "request.fixed_p * total.unsqueeze(-1)", "request.fixed_p", "fixed threshold on unnormalised weights"),
    (
        NUCLEUS,
        "num_inside = crossing + int(with_crossing)",
        "num_inside = crossing + 1",
        "paper_code counts the crossing token",
    ),
    (
        NUCLEUS,
        "return target, above, candidates, columns",
        "return target, 0.0 * above, candidates, columns",
        "mass above the bin dropped",
    ),
    (NUCLEUS, "(columns < tie_bound.unsqueeze(-1))", "(columns <= tie_bound.unsqueeze(-1))", "tie bound off by one"),
    (STATS, "torch.addmm(bias, rows, transposed, out=tile)", "torch.mm(rows, transposed, out=tile)", "bias dropped"),
    (STATS, "_add_product(for_weight, tile.t()", "_add_product(for_weight, 0.0 * tile.t()", "head without gradient"),
    (STATS, "tile.sum(dim=0, dtype=wide)", "tile.mean(dim=0, dtype=wide)", "bias gradient averaged"),
    (STATS, "slice(start + first, start + first + len(block))", "slice(first, first + len(block))", "tiles not offset"),
    (
        MODEL,
        '    "granite": ("logits_scaling", -1),\n',
        '    "granite": ("logits_scaling", 1),\n',
        "granite multiplied",
    ),
    (MODEL, '    "gemma2": "final_logit_softcapping",\n', "", "gemma2 refused"),
)
