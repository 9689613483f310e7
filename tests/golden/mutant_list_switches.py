"""The faults planted in the objective's switches: ratio levels, policy losses, KL estimators, advantages, mismatch."""

ADVANTAGE, POLICY, RATIO = "objectives/advantage.py", "objectives/policy_loss.py", "objectives/ratio.py"
KL, AGGREGATION, MISMATCH = "objectives/kl.py", "objectives/aggregation.py", "objectives/mismatch.py"

# (old text, new text, description), by file under rlvr/
RATIO_FAULTS = (
    ("torch.where(mask, logprobs - old_logprobs.detach(), 0.0)", "logprobs - old_logprobs.detach()", "ratio unmasked"),
    ("mask.sum(dim=1, keepdim=True).clamp(min=1)", "mask.shape[1]", "sequence ratio over the padded width"),
    ("mask.sum(dim=1, keepdim=True).clamp(min=1)", "mask.sum(dim=1, keepdim=True)", "empty row of a sequence ratio"),
    (" / mask.sum(dim=1, keepdim=True).clamp(min=1)", "", "sequence ratio is the sum"),
    ("20.0, 10.0  #", "25.0, 10.0  #", "limit of the token ratio"),
    ("20.0, 10.0  #", "20.0, 20.0  #", "limit of the sequence ratio"),
    ("torch.where(mask, mean, mean.detach())", "mean.detach().expand_as(mask)", "sequence ratio without gradient"),
    ("kept - kept.detach()", "kept.detach() - kept", "GSPO-token gradient with the wrong sign"),
    ("(mean + (kept - kept.detach()))", "(mean + kept)", "GSPO-token value off by the log-prob"),
    ("torch.where(mask, logprobs, 0.0)", "logprobs", "NaN at padding in GSPO-token"),
    ("mask), mask).detach()", "mask), mask)", "GSPO-token gradient also through the mean"),
    ('"sequence": sequence_log_ratio', '"sequence": sequence_token_log_ratio', "sequence level registered wrongly"),
    (
        '"sequence_token": sequence_token_log_ratio',
        '"sequence_token": token_log_ratio',
        "GSPO-token is the token level",
    ),
)
POLICY_FAULTS = (
    ("ratio.clamp(max=settings.delta)", "ratio.clamp(min=settings.delta)", "delta as a floor"),
    ("ratio = ratio.clamp(max=settings.delta)", "clipped = clipped.clamp(max=settings.delta)", "delta on the clipped"),
    ("clamp(max=settings.delta)", "clamp(max=1.0 + settings.delta)", "delta is 1 + delta"),
    (
        "-settings.dual_clip * advantages.detach()",
        "settings.dual_clip * advantages.detach()",
        "dual clip of wrong sign",
    ),
    (
        "torch.where(advantages < 0, torch.minimum",
        "torch.where(advantages > 0, torch.minimum",
        "dual clip of good tokens",
    ),
    ("torch.minimum(losses, ceiling), losses)", "torch.maximum(losses, ceiling), losses)", "dual clip as a floor"),
    ("torch.minimum(losses, ceiling), losses)", "ceiling, losses)", "dual clip on every bad token"),
    ("torch.exp(log_ratio.detach()).clamp(max", "torch.exp(log_ratio).clamp(max", "cispo weight with gradient"),
    (".clamp(max=settings.cispo_cap)", "", "cispo without its cap"),
    ("clamp(max=settings.cispo_cap)", "clamp(max=1.0 + settings.cispo_cap)", "cispo cap is 1 + cap"),
    ("clamp(max=settings.cispo_cap)", "clamp(1.0 - settings.clip_low, settings.cispo_cap)", "cispo with a lower bound"),
    (
        "return -weight * advantages.detach() * logprobs",
        "return -weight * advantages.detach()",
        "cispo without log-prob",
    ),
    ("-(4.0 / tau) * gate", "-4.0 * gate", "sapo without 1 / tau"),
    ("-(4.0 / tau) * gate", "-(2.0 / tau) * gate", "sapo with half the weight"),
    ("torch.expm1(log_ratio)", "log_ratio", "sapo gates the log-ratio"),
    ("torch.expm1(log_ratio)", "torch.exp(log_ratio)", "sapo gate centred at ratio 0"),
    ("torch.sigmoid(tau *", "torch.tanh(tau *", "sapo with tanh"),
    ("clipped.detach() * unit", "clipped.detach()", "gppo without gradient beyond the bounds"),
    ("clipped.detach() * unit", "clipped.detach() * ratio", "gppo value times the ratio"),
    ("clipped.detach() * unit", "clipped * unit", "gppo gradient doubled inside the bounds"),
    ("clipped.detach() * unit", "ratio.detach() * unit", "gppo without bounds"),
    (
        "return -advantages.detach() * logprobs",
        "return -advantages.detach() * torch.exp(log_ratio)",
        "reinforce with r",
    ),
    ("return -advantages.detach() * logprobs", "return -advantages.detach() * logprobs.exp()", "reinforce of pi"),
    ('"gppo": gppo_loss', '"gppo": clip_loss', "gppo registered as clip"),
)
KL_FAULTS = (
    ("return -_difference(", "return _difference(", "k1 with the wrong sign"),
    ("0.5 * _difference", "_difference", "k2 without the half"),
    (".square()", ".abs()", "k2 linear"),
    (".clamp(-LOG_LIMIT, LOG_LIMIT)", ".clamp(max=LOG_LIMIT)", "k3 not clamped below"),
    (".clamp(-LOG_LIMIT, LOG_LIMIT)", "", "k3 not clamped"),
    ("* torch.exp(log_ratio)", "* torch.exp(log_ratio).detach()", "k3_ratio without gradient through the ratio"),
    ("* torch.exp(log_ratio)", "* log_ratio", "k3_ratio times the log-ratio"),
    ("log_ratio) * torch.exp(log_ratio)", "log_ratio).detach() * torch.exp(log_ratio)", "k3_ratio: k3 detached"),
    ('"k2": k2', '"k2": k3', "k2 registered as k3"),
)
ADVANTAGE_FAULTS = (
    ("(rewards - group.mean) / (batch_std + eps)", "rewards / (batch_std + eps)", "batch_std uncentred"),
    ("(batch_std + eps)", "batch_std.clamp(min=eps)", "batch_std with eps as a floor"),
    (
        "(~torch.isnan(rewards)).to(rewards.dtype), ddof",
        "group.informative.to(rewards.dtype), ddof",
        "batch_std of some",
    ),
    (
        "(~torch.isnan(rewards)).to(rewards.dtype), ddof",
        "num_tokens * ~torch.isnan(rewards), ddof",
        "batch_std by token",
    ),
    ("group.count / others * (", "others / group.count * (", "rloo factor inverted"),
    ("group.count / others * (", "(", "rloo without its factor"),
    ("(total_weight - ddof)", "total_weight", "whitening ignores ddof"),
    (".clamp(min=1.0)).sqrt()\n\n\ndef _whitened", ".clamp(min=1.0))\n\n\ndef _whitened", "whitening by the variance"),
    ("(weights * counted).sum() / total_weight.clamp(min=1.0)", "counted[weights > 0].mean()", "mean over the rows"),
    ("(weights * (counted - centre).square()).sum()", "(counted - centre).square().sum()", "squares over the rows"),
    ("torch.where(weights > 0, values, 0.0)", "values", "NaN enters the weighted moments"),
    ("(values - centre) / (spread + eps)", "values / (spread + eps)", "whitening does not centre"),
    ("(spread + eps)", "spread.clamp(min=eps)", "whitening with eps as a floor"),
    ("numel() < 2", "numel() < 1", "guard of equal rewards in the whitening removed"),
    ("torch.where(scorable, num_tokens.to(rewards.dtype), 0.0)", "scorable.to(rewards.dtype)", "whitening by row"),
    ("torch.where(scorable, _whitened(", "torch.where(weights > 0, _whitened(", "rows without tokens get 0"),
    (
        "torch.where(group.informative, num_tokens",
        "torch.where(~torch.isnan(rewards), num_tokens",
        "baseline of all rows",
    ),
    ("_whitened(rewards - group.mean", "_whitened(rewards", "baseline variant without its baseline"),
    ("torch.where(torch.isnan(rewards), 0.0, rewards)", "rewards - rewards.nanmean()", "reward itself is centred"),
    ("torch.where(torch.isnan(rewards), 0.0, rewards)", "rewards", "unscorable reward is NaN"),
)
AGGREGATION_FAULTS = (
    ("max(denominator.num_rows, 1.0)", "max(denominator.num_sequences, 1.0)", "token_sum leaves out empty rows"),
    ("max(denominator.num_rows, 1.0)", "values.shape[0]", "token_sum counts local rows"),
    ('"token_sum": _token_sum', '"token_sum": _sequence_mean', "token_sum is the sequence mean"),
)
MISMATCH_FAULTS = (
    ("(old_logprobs - sampling_logprobs).detach()", "(sampling_logprobs - old_logprobs).detach()", "rho inverted"),
    ("(old_logprobs - sampling_logprobs).detach()", "(old_logprobs - sampling_logprobs)", "weights with gradient"),
    ("return mask & ~torch.isnan(old_logprobs - sampling_logprobs)", "return mask", "NaN sampling log-prob leaks"),
    ("mask & ~torch.isnan(old", "~torch.isnan(old", "masked tokens enter the products"),
    ("LOG_LIMIT = 20.0", "LOG_LIMIT = 25.0", "limit of log rho"),
    ("mask & (weights > 0)", "mask", "dropped tokens counted as kept"),
    ("torch.where(measured, weights, 1.0)", "torch.where(measured, weights, 0.0)", "unmeasured tokens dropped"),
    ("rho.clamp(settings.low, settings.high)", "rho.clamp(max=settings.high)", "token_tis without its lower bound"),
    ("rho.clamp(settings.low, settings.high)", "rho.clamp(min=settings.low)", "token_tis without its upper bound"),
    (
        "product.clamp(max=settings.high)",
        "product.clamp(settings.low, settings.high)",
        "sequence_tis with a lower bound",
    ),
    ("product.clamp(max=settings.high)", "product", "sequence_tis not truncated"),
    ("torch.where(_within(rho, settings), rho, 0.0)", "rho.clamp(settings.low, settings.high)", "icepop clamps"),
    ("torch.where(_within(rho, settings), rho, 0.0)", "_within(rho, settings).to(rho.dtype)", "icepop without weight"),
    ("(_within(product, settings), product, 0.0)", "(_within(product, settings), 1.0, 0.0)", "mask without weight"),
    ("(_within(product, settings), product, 0.0)", "(product <= settings.high, product, 0.0)", "mask without low"),
    ("values >= settings.low", "values > settings.low", "lower bound excluded"),
    ("values <= settings.high", "values < settings.high", "upper bound excluded"),
    ("/ mask.sum(dim=1, keepdim=True).clamp(min=1)", "/ mask.shape[1]", "geometric mean over the padded width"),
    (" / mask.sum(dim=1, keepdim=True).clamp(min=1)", "", "geometric is the product"),
    ("_within(mean, settings).to(log_rho.dtype)", "mean * _within(mean, settings)", "geometric keeps a weight"),
    ("mask & ~correction.keep_mask", "~correction.keep_mask", "padding counted as masked"),
    ("torch.where(measured, torch.exp(log_rho), 0.0)", "torch.exp(log_rho)", "padding counted in rho"),
    ("torch.expm1(log_rho) - log_rho", "-log_rho", "mismatch KL is k1"),
    ("rho.square() / (count", "rho / (count", "ESS without the square"),
    ("(count * rho_squared)", "rho_squared", "ESS not a share"),
    (
        'sums["masked"] / sums["num_tokens"]',
        'sums["masked"] / sums["num_measured"]',
        "masked share of the measured tokens",
    ),
    ('["num_measured"] == 0', '["num_measured"] < 0', "metrics of nothing measured are NaN"),
)

TESTS = "tests/golden/test_switches_{}.py"
BY_FILE = (
    (RATIO, RATIO_FAULTS, "policy"),
    (POLICY, POLICY_FAULTS, "policy"),
    (KL, KL_FAULTS, "kl_mismatch"),
    (ADVANTAGE, ADVANTAGE_FAULTS, "advantage"),
    (AGGREGATION, AGGREGATION_FAULTS, "advantage"),
    (MISMATCH, MISMATCH_FAULTS, "kl_mismatch"),
)
# (file under rlvr/, old text, new text, description, test files)
SWITCH_FAULTS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = tuple(
    (file, *fault, (TESTS.format(tests),)) for file, faults, tests in BY_FILE for fault in faults
)
