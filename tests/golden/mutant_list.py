"""The faults that `tests.golden.mutants` plants, and the test files that should notice each."""

from dataclasses import dataclass

from tests.golden.mutant_list_backends import BACKEND_FAULTS
from tests.golden.mutant_list_beyond import BEYOND_FAULTS, BEYOND_TESTS
from tests.golden.mutant_list_engines import ENGINE_FAULTS
from tests.golden.mutant_list_eval import EVAL_FAULTS
from tests.golden.mutant_list_extrapolation import EXTRAPOLATION_FAULTS, EXTRAPOLATION_TESTS
from tests.golden.mutant_list_guidance import GUIDANCE_FAULTS, GUIDANCE_TESTS
from tests.golden.mutant_list_linearity import LINEARITY_FAULTS, LINEARITY_TESTS
from tests.golden.mutant_list_logits import LOGITS_FAULTS, LOGITS_TESTS
from tests.golden.mutant_list_ops import OPS_FAULTS
from tests.golden.mutant_list_regularizers import REGULARIZER_FAULTS
from tests.golden.mutant_list_report import REPORT_FAULTS, REPORT_TESTS
from tests.golden.mutant_list_resume import RESUME_FAULTS, RESUME_TESTS
from tests.golden.mutant_list_rewards import POOL_TESTS, REWARD_FAULTS, TESTS_OF_REWARDS
from tests.golden.mutant_list_sampling import SAMPLING_FAULTS, SAMPLING_TESTS
from tests.golden.mutant_list_scaling import SCALING_FAULTS, SCALING_TESTS
from tests.golden.mutant_list_search import SEARCH_FAULTS, SEARCH_TESTS
from tests.golden.mutant_list_switches import SWITCH_FAULTS
from tests.golden.mutant_list_watching import WATCHING_FAULTS, WATCHING_TESTS


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which occurs exactly once in `file` (under rlvr/), becomes `new`."""

    file: str
    old: str
    new: str
    description: str
    tests: tuple[str, ...] = ()


ADVANTAGE, POLICY, RATIO = "objectives/advantage.py", "objectives/policy_loss.py", "objectives/ratio.py"
KL, AGGREGATION = "objectives/kl.py", "objectives/aggregation.py"
ESTIMATORS = "evaluation/estimators.py"

# (file under rlvr/, old text, new text, description)
FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (POLICY, "return -torch.minimum", "return torch.minimum", "sign of the loss"),
    (POLICY, "-torch.minimum(", "-torch.maximum(", "max instead of min"),
    (RATIO, "logprobs - old_logprobs.detach()", "old_logprobs.detach() - logprobs", "ratio inverted"),
    (POLICY, "ratio = torch.exp(log_ratio)", "ratio = 1.0 + log_ratio", "no exponential"),
    (
        POLICY,
        "clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)",
        "clamp(1.0 - settings.clip_high, 1.0 + settings.clip_low)",
        "bounds swapped",
    ),
    (
        POLICY,
        "clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)",
        "clamp(1.0 - settings.clip_low, 1.0 + settings.clip_low)",
        "clip_high ignored",
    ),
    (
        POLICY,
        "clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)",
        "clamp(max=1.0 + settings.clip_high)",
        "no lower bound",
    ),
    (
        POLICY,
        "clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)",
        "clamp(min=1.0 - settings.clip_low)",
        "no upper bound",
    ),
    (POLICY, "clipped * advantages", "ratio * advantages", "no clipping"),
    (POLICY, "(ratio * advantages", "(clipped * advantages", "clipped term only"),
    (RATIO, "logprobs - old_logprobs.detach()", "(logprobs - old_logprobs).detach()", "gradient detached"),
    (RATIO, "logprobs - old_logprobs.detach()", "logprobs - old_logprobs", "gradient through old_logprobs"),
    (POLICY, "(advantages < 0)", "(advantages > 0)", "low clip fraction with the wrong sign"),
    (POLICY, "(ratio > 1.0 + clip_high)", "(ratio > 1.0 + clip_low)", "high clip fraction at the wrong bound"),
    (KL, "ref_logprobs.detach() - logprobs", "logprobs - ref_logprobs.detach()", "direction of the KL"),
    (KL, "torch.exp(difference) - difference - 1.0", "1.0 + difference - torch.exp(difference)", "sign of the KL"),
    (KL, "torch.exp(difference) - difference - 1.0", "-difference", "k1 instead of k3"),
    (KL, "torch.exp(difference) - difference - 1.0", "0.5 * difference.square()", "k2 instead of k3"),
    (KL, "- difference - 1.0", "- difference", "k3 without the minus one"),
    (KL, "ref_logprobs.detach() - logprobs", "ref_logprobs.detach() - logprobs.detach()", "KL without gradient"),
    (AGGREGATION, "torch.where(loss_mask, values, 0.0), loss", "values, loss", "padding unmasked"),
    (AGGREGATION, "torch.where(loss_mask, values, 0.0)", "values * loss_mask", "NaN at padding leaks"),
    (AGGREGATION, "max(denominator.num_loss_tokens, 1.0)", "loss_mask.sum().clamp(min=1)", "local token count"),
    (AGGREGATION, "max(denominator.num_loss_tokens, 1.0)", "values.numel()", "padded token count"),
    (
        AGGREGATION,
        "loss_mask.sum(dim=1).clamp(min=1)",
        "loss_mask.shape[1]",
        "sequence mean divides by the padded width",
    ),
    (AGGREGATION, "loss_mask.sum(dim=1).clamp(min=1)", "loss_mask.sum(dim=1)", "empty row divides by zero"),
    (AGGREGATION, "values.sum(dim=1) / lengths", "values.sum(dim=1)", "sequence mean does not divide by the length"),
    (AGGREGATION, "max(denominator.num_sequences", "max(denominator.num_rows", "sequence mean counts empty rows"),
    (AGGREGATION, "max(denominator.num_sequences", "max(loss_mask.any(dim=1).sum()", "local sequence count"),
    (AGGREGATION, "* denominator.max_completion_length", "* values.shape[1]", "constant uses the padded width"),
    (AGGREGATION, "denominator.num_rows *", "denominator.num_sequences *", "constant leaves out empty rows"),
    (AGGREGATION, "denominator.num_rows *", "values.shape[0] *", "constant counts local rows"),
    (AGGREGATION, '"token_mean": _token_mean', '"token_mean": _sequence_mean', "token_mean is the sequence mean"),
    (ADVANTAGE, "(rewards - group.mean) / (group.std", "rewards / (group.std", "group advantage uncentred"),
    (ADVANTAGE, "informative, rewards - group.mean, 0.0)", "informative, rewards, 0.0)", "uncentred"),
    (ADVANTAGE, "total(values) / count.clamp(min=1.0)", "rewards.nanmean().expand_as(rewards)", "mean of the batch"),
    (ADVANTAGE, "torch.unique(group_ids", "torch.unique_consecutive(group_ids", "only neighbours form a group"),
    (ADVANTAGE, "(count - ddof)", "count", "ddof ignored as 0"),
    (ADVANTAGE, "(count - ddof)", "(count - 1)", "ddof ignored as 1"),
    (ADVANTAGE, "(count - ddof).clamp(min=1.0)).sqrt()", "(count - ddof).clamp(min=1.0))", "variance instead of std"),
    (ADVANTAGE, "(group.std + eps)", "group.std.clamp(min=eps)", "eps as a floor"),
    (ADVANTAGE, "(group.std + eps)", "(group.std.square() + eps).sqrt()", "eps under the root"),
    (ADVANTAGE, "(group.std + eps)", "(rewards[~rewards.isnan()].std() + eps)", "std of the batch"),
    (
        ADVANTAGE,
        "total(scorable.to(rewards.dtype))",
        "total(torch.ones_like(rewards))",
        "unscorable counted in the mean",
    ),
    (ADVANTAGE, "torch.where(scorable, rewards - mean, 0.0)", "values - mean", "unscorable counted in the std"),
    (ADVANTAGE, "informative = scorable & ", "informative = ", "unscorable gets NaN"),
    (ADVANTAGE, " & (highest > lowest)", "", "guard of equal rewards removed"),
    (ADVANTAGE, "(highest > lowest)", "(highest > lowest + 1e-3)", "nearly equal rewards zeroed"),
    (ADVANTAGE, "(count >= 2)", "(count >= 3)", "pairs have no signal"),
    (ESTIMATORS, "return 1.0 - math.comb", "return math.comb", "pass@k without the complement"),
    (ESTIMATORS, "(num_samples - num_correct, k)", "(num_samples - num_correct, k - 1)", "pass@k off by one"),
    (ESTIMATORS, "/ math.comb(num_samples, k)", "/ math.comb(num_samples + 1, k)", "pass@k of one sample more"),
    (
        ESTIMATORS,
        "math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)",
        "(1.0 - num_correct / num_samples) ** k",
        "pass@k biased",
    ),
    (ESTIMATORS, "tail = (1.0 - level) / 2.0", "tail = 1.0 - level", "bootstrap level one-sided"),
    (ESTIMATORS, "LEVEL = 0.95", "LEVEL = 0.9", "bootstrap default level"),
    (ESTIMATORS, "default_rng(seed)", "default_rng(0)", "bootstrap seed ignored"),
    (ESTIMATORS, "default_rng(seed)", "default_rng()", "bootstrap not deterministic"),
    (ESTIMATORS, "integers(0, num_units,", "integers(0, max(num_units - 1, 1),", "last prompt never drawn"),
    (ESTIMATORS, "times.astype(np.float64) @", "(times > 0).astype(np.float64) @", "prompts drawn twice count once"),
    (ESTIMATORS, "[tail, 1.0 - tail]", "[1.0 - tail, tail]", "bootstrap ends swapped"),
)

OBJECTIVE, BATCHING, MODEL, TRAINER = "objectives/objective.py", "batching.py", "policy.py", "trainer.py"
SAMPLING = "sampling_trainer.py"
STAGE, FROZEN, VERIFY, SUPPORT = "advantages.py", "frozen.py", "verification/verify.py", "ops/support.py"
GROUP_FILTER = "objectives/group_filter.py"
REWARD_KL, STEP_SUMS = "objectives/reward_kl.py", "reporting/step_sums.py"
EVALUATE, RANDOM, METRICS = "evaluation/evaluate.py", "random_numbers.py", "reporting/metrics.py"

# Faults of the step around the maths.
STEP_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (POLICY, "advantages = advantages.detach()", "advantages = advantages + 0.0", "gradient through the advantages"),
    (OBJECTIVE, "torch.where(mask, stats.logprobs, 0.0)", "stats.logprobs", "NaN at padding leaks into the gradient"),
    (
        OBJECTIVE,
        "losses * weights, mask, denominator, algorithm.aggregation",
        'losses * weights, mask, denominator, "token_mean"',
        "rule",
    ),
    (
        OBJECTIVE,
        "penalty, mask, denominator, algorithm.aggregation",
        'penalty, mask, denominator, "token_mean"',
        "KL rule",
    ),
    (OBJECTIVE, "algorithm.kl_coef * aggregate", "aggregate", "kl_coef ignored"),
    (OBJECTIVE, "StepLoss(loss + kl_loss", "StepLoss(loss", "KL reported but not in the loss"),
    (OBJECTIVE, "token_share(old_logprobs - logprobs)", "token_share(logprobs - old_logprobs)", "sign of kl/k1_old"),
    (OBJECTIVE, "token_share(low_mask & ~is", "token_share(high_mask & ~is", "clip fraction"),
    (
        OBJECTIVE,
        'logprobs.dtype), mask, denominator, "token_mean")',
        "logprobs.dtype), mask, denominator, algorithm.aggregation)",
        "metrics by the rule",
    ),
    (
        OBJECTIVE,
        "getattr(algorithm, field.name) for field in fields(PolicySettings)",
        "getattr(algorithm, field.name) for field in fields(PolicySettings)[:2]",
        "later settings of the recipe ignored",
    ),
    (OBJECTIVE, "losses if weights is None else losses * weights", "losses", "mismatch correction not applied"),
    (
        OBJECTIVE,
        'RATIO_LEVELS["token"](logprobs, old_logprobs, mask)',
        "RATIO_LEVELS[algorithm.ratio_level](logprobs, old_logprobs, mask)",
        "penalty of k3_ratio by sequence",
    ),
    (OBJECTIVE, '"loss/kl": loss.detach()', '"loss/kl": loss', "a metric keeps the graph"),
    (OBJECTIVE, "token_share(stats.entropy)", "stats.entropy.mean().detach()", "entropy over padding"),
    (BATCHING, "context_lengths.unsqueeze(1) - 1 +", "context_lengths.unsqueeze(1) +", "predictor off by one"),
    (
        BATCHING,
        "padded([torch.ones_like(ids) for ids in sequences], 0)",
        "input_ids.ne(pad_token_id).long()",
        "attention mask guessed from the padding token",
    ),
    (BATCHING, "(lengths[row], row)", "row", "micro-batches in input order"),
    (BATCHING, ".manual_seed(seed)", ".manual_seed(0)", "seed of the windows ignored"),
    (BATCHING, "float(sum(t > 0 for t in tokens))", "float(len(tokens))", "masked rows counted as sequences"),
    (BATCHING, "torch.tensor(row.loss_mask, dtype", "torch.ones(len(row.loss_mask), dtype", "tool tokens in the loss"),
    (BATCHING, "stacked([row.ref_logprobs", "stacked([row.old_logprobs", "old log-probs as the reference's"),
    (
        MODEL,
        "        temperature=temperature,\n        request=request,",
        "        temperature=1.0,\n        request=request,",
        "temperature",
    ),
    (
        MODEL,
        "hidden[token_query.rows, token_query.positions]",
        "hidden[token_query.rows, token_query.positions - 1]",
        "off by one",
    ),
    (
        MODEL,
        "        head.bias,\n        query.targets",
        "        None,\n        query.targets",
        "bias of the head dropped",
    ),
    (MODEL, "stats=TokenStats(*values)", "stats=TokenStats(values[0].detach(), *values[1:])", "gradient cut"),
    (TRAINER, "step_loss.loss * self.accelerator.num_processes", "step_loss.loss", "num_processes forgotten"),
    (STAGE, "first = accelerator.process_index * len(rollouts.group_ids)", "first = 0", "slice of rank 0"),
    (
        TRAINER,
        'self.accelerator.reduce(counts.to(self.accelerator.device, self._count_dtype), reduction="sum")',
        "counts.to(self.accelerator.device, self._count_dtype)",
        "counts of this rank only",
    ),
    (TRAINER, "generate_every != self.args", "generate_every == self.args", "is_off_policy negated"),
    (
        STAGE,
        "gather_floats(accelerator, [verdicts.rewards])",
        "gather_floats(accelerator, [verdicts.outcomes])",
        "outcome for reward",
    ),
    (TRAINER, "model, inputs, self.temperature, self.needs", "model, inputs, 1.0, self.needs", "temperature"),
    (TRAINER, "pad_token_id, self.temperature", "pad_token_id, 1.0", "old temperature"),
    (FROZEN, "zip(chunk, lengths, strict=True)", "zip(sorted(chunk), lengths, strict=True)", "another row's log-probs"),
    (TRAINER, "model = self.ref_model or self.model", "model = self.model", "the policy as its own reference"),
    (TRAINER, "return self._buffered_inputs[position]", "return self._buffered_inputs[0]", "one micro-batch again"),
    (
        TRAINER,
        "weights_moved=self._step % generate_every != 0",
        "weights_moved=False",
        "step statistics of old weights",
    ),
    (TRAINER, "self.state.global_step == 0:", "self.state.global_step < 0:", "no start of the regularisers"),
    (
        SAMPLING,
        "return self._buffered_inputs is None or self._step % generate_every == 0",
        "return self._buffered_inputs is None or self._step % self.args.steps_per_generation == 0",
        "no iterations",
    ),
    (TRAINER, "if self.accelerator.sync_gradients", "if True", "metrics flushed at every micro-batch"),
    (TRAINER, '"windows", self.state.global_step', '"windows", 0', "windows repeat"),
    (TRAINER, "Denominator(tokens, sequences, num_rows", "Denominator(tokens, num_rows, num_rows", "wrong count"),
    (SAMPLING, "self.model.train(was_training)", "self.model.eval()", "sampling leaves the model in eval mode"),
    (VERIFY, "share > config.max_unscorable", "share >= config.max_unscorable", "abort at the limit"),
    (SUPPORT, "- log_mass)[kept]", ")[kept]", "kept tokens not renormalised"),
    (SUPPORT, "cumsum(0)[mask]", "cumsum(0)[mask.roll(1)]", "kept tokens of another position"),
    (SUPPORT, "slice(end - count, end)", "slice(end - count + 1, end)", "a kept token lost"),
    (SUPPORT, "/ rule.temperature, dim=-1)", ", dim=-1)", "temperature of the kept tokens"),
    (REWARD_KL, "penalty.flip(0).cumsum(0).flip(0)", "penalty.cumsum(0)", "earlier penalties instead of later ones"),
    (REWARD_KL, "reward - penalty.flip(0)", "reward + penalty.flip(0)", "divergence rewarded"),
    (REWARD_KL, "torch.where(mask, coef", "torch.where(mask | True, coef", "penalty on tool tokens"),
    (REWARD_KL, "len(counted) - ddof", "len(counted)", "ddof of the returns ignored"),
    (REWARD_KL, 'if rule == "reinforce_pp":', "if True:", "no baseline under the baseline rule"),
    (STAGE, "optimised = rewards - totals", "optimised = rewards", "penalty reported but not taken off"),
    (STAGE, "group_ids, mine, penalties", "group_ids, slice(None), penalties", "returns of other ranks"),
    (GROUP_FILTER, "self.step >= self.first_filtered and", "self.step > self.first_filtered and", "filter a step late"),
    (
        GROUP_FILTER,
        "deviation >= self.ratio * self.ema",
        "deviation > self.ratio * self.ema",
        "threshold itself dropped",
    ),
    (GROUP_FILTER, "mean if self.ema is None else", "mean if True else", "no moving average"),
    (GROUP_FILTER, "if not math.isnan(deviation)]", "]", "groups without verdicts averaged"),
    (GROUP_FILTER, "rewards[member_of == group]", "rewards", "deviation of the whole batch"),
    (STAGE, "torch.where(kept, advantages, 0.0)", "advantages", "dropped groups are trained on"),
    (STAGE, "torch.where(keep, each, 0.0)", "each", "tokens of dropped groups are trained on"),
    (STEP_SUMS, "torch.maximum(self._maxima.get(name, value), value)", "value", "maximum of the last micro-batch"),
    (STEP_SUMS, "everyones.amax(dim=0)", "everyones.sum(dim=0)", "maxima added up"),
    (RANDOM, "fork_rng()", "fork_rng(enabled=False)", "evaluation moves the run's random numbers"),
    (EVALUATE, "if None not in r.outcomes and", "if r.outcomes and", "prompts without a verdict counted"),
    (EVALUATE, "sum(o == 1.0 for o in r.outcomes)", "sum(o == 1.0 for o in r.rewards)", "pass@k of rewards"),
    (METRICS, "(pass_rates == 0)", "(pass_rates != 1)", "mixed groups counted as unsolved"),
)
LAWS = "tests/invariance/test_objective_laws.py"
REWARD_TESTS = "tests/golden/test_reward_kl.py"
STAGES, TWO_PROCESSES = "tests/unit/test_trainer_stages.py", "tests/distributed/test_two_processes.py"
TESTS_OF: dict[str, tuple[str, ...]] = {
    ADVANTAGE: ("tests/golden/test_advantage.py", LAWS),
    POLICY: ("tests/golden/test_objective.py", LAWS),
    RATIO: ("tests/golden/test_objective.py", LAWS),
    KL: ("tests/golden/test_objective.py", LAWS),
    AGGREGATION: ("tests/golden/test_objective.py", LAWS),
    ESTIMATORS: ("tests/golden/test_estimators.py",),
    OBJECTIVE: ("tests/golden/test_objective_whole.py", "tests/golden/test_objective_wiring.py"),
    BATCHING: ("tests/unit/test_batching.py",),
    MODEL: ("tests/invariance/test_policy.py",),
    TRAINER: (STAGES, "tests/unit/test_regularizers_in_trainer.py"),
    RANDOM: (STAGES,),
    EVALUATE: ("tests/unit/test_evaluate.py",),
    METRICS: ("tests/unit/test_evaluate.py", "tests/unit/test_metrics.py"),
    STAGE: (STAGES, REWARD_TESTS, "tests/unit/test_group_filter_in_trainer.py"),
    GROUP_FILTER: ("tests/golden/test_group_filter.py",),
    SAMPLING: (STAGES,),
    FROZEN: (STAGES, "tests/unit/test_regularizers_in_trainer.py"),
    VERIFY: (STAGES,),
    SUPPORT: ("tests/unit/test_regularizers_in_trainer.py",),
    REWARD_KL: (REWARD_TESTS,),
    STEP_SUMS: ("tests/unit/test_metrics.py",),
}
OPS_TESTS = (
    "tests/golden/test_token_stats.py",
    "tests/golden/test_token_stats_full.py",
    "tests/invariance/test_policy.py",
)
# What one process cannot show.
TESTS_OF_FAULT: dict[str, tuple[str, ...]] = {
    "num_processes forgotten": (TWO_PROCESSES,),
    "slice of rank 0": (TWO_PROCESSES,),
    "counts of this rank only": (TWO_PROCESSES,),
    "returns of other ranks": (TWO_PROCESSES,),
    "maxima added up": (TWO_PROCESSES,),
}
MUTANTS = (
    *(Mutant(*fault, tests=TESTS_OF_FAULT.get(fault[3], TESTS_OF[fault[0]])) for fault in (*FAULTS, *STEP_FAULTS)),
    *(Mutant(*fault) for fault in (*SWITCH_FAULTS, *REGULARIZER_FAULTS)),
    *(Mutant(*fault, tests=OPS_TESTS) for fault in OPS_FAULTS),
    *(Mutant(*fault, tests=GUIDANCE_TESTS) for fault in GUIDANCE_FAULTS),
    *(Mutant(*fault, tests=EXTRAPOLATION_TESTS[fault[0]]) for fault in EXTRAPOLATION_FAULTS),
    *(Mutant(*fault, tests=LOGITS_TESTS[fault[0]]) for fault in LOGITS_FAULTS),
    *(Mutant(*fault[:4], tests=fault[4:]) for fault in ENGINE_FAULTS),
    *(Mutant(*fault[:4], tests=fault[4:]) for fault in BACKEND_FAULTS),
    *(Mutant(*fault[:3], f"eval: {fault[3]}", tests=fault[4:]) for fault in EVAL_FAULTS),
    *(Mutant(*fault, tests=SEARCH_TESTS[fault[0]]) for fault in SEARCH_FAULTS),
    *(Mutant(*fault, tests=LINEARITY_TESTS[fault[0]]) for fault in LINEARITY_FAULTS),
    *(Mutant(*fault, tests=BEYOND_TESTS[fault[0]]) for fault in BEYOND_FAULTS),
    *(Mutant(*fault, tests=RESUME_TESTS[fault[0]]) for fault in RESUME_FAULTS),
    *(Mutant(*fault[:3], f"dynamic: {fault[3]}", tests=SAMPLING_TESTS[fault[0]]) for fault in SAMPLING_FAULTS),
    *(Mutant(*fault, tests=SCALING_TESTS[fault[0]]) for fault in SCALING_FAULTS),
    *(Mutant(*fault, tests=WATCHING_TESTS[fault[0]]) for fault in WATCHING_FAULTS),
    *(Mutant(*fault, tests=REPORT_TESTS[fault[0]]) for fault in REPORT_FAULTS),
    *(Mutant(*fault, tests=TESTS_OF_REWARDS.get(fault[0], POOL_TESTS)) for fault in REWARD_FAULTS),
)
