"""The training step on TRL's trainer.

TRL keeps loading, engines, data loading, checkpoints and logging; the step itself is ours:

    rollout -> verify -> resample -> guide -> advantage -> loss

Three files touch TRL's private methods: this one, `sampling_trainer.py` and, for checkpoints, `resumable.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from rlvr.advantages import step_advantages
from rlvr.batching import (
    collate,
    count_rows,
    group_by_length,
    loss_masks_of,
    step_windows,
    support_query,
    train_rows,
)
from rlvr.config import Algorithm
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RecipeError
from rlvr.extrapolation.periodic import Host, PeriodicJumps
from rlvr.frozen import FrozenPass
from rlvr.gathering import gather_ragged, gather_table
from rlvr.guidance.shaping import with_shaped_ratios
from rlvr.guidance.tools import Guide, encoded
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.group_filter import build_group_filter
from rlvr.objectives.objective import finish_metrics, objective
from rlvr.objectives.regularizers import Regularizer, all_needs
from rlvr.objectives.regularizers.step import prepare_step, step_tokens
from rlvr.objectives.reward_kl import reward_penalties
from rlvr.ops.support import SupportLogprobs
from rlvr.plugins import Stateful
from rlvr.policy import attach_token_stats, read_completions
from rlvr.policy_scorer import PolicyScorer, scorer_offer
from rlvr.reporting.completions import completions_table
from rlvr.reporting.metrics import majority_rate, mean_shares
from rlvr.reporting.step_sums import StepSums
from rlvr.reporting.token_values import TokenValues
from rlvr.sampling.dynamic import DynamicSampling
from rlvr.sampling_trainer import SamplingTrainer
from rlvr.seeds import derived_seed
from rlvr.tools import Tools
from rlvr.types import Microbatch, Rollouts, ScoredRollouts, TrainRow
from rlvr.verification import Judge, RewardFunction, Verdicts, check_unscorable, limits_of, shared_judge, verify
from rlvr.watching.watch import Watch


class RLVRTrainer(SamplingTrainer):
    """GRPO-style policy optimisation with verifiable rewards.

    `args` sets sizes, sampling and optimisation; `algorithm` the objective; `rewards` what is optimised and which of
    the functions is the verifier. `train_dataset` needs the columns `prompt` and `prompt_id`.
    """

    token_values: TokenValues | None = None  # sees every forward pass of the loss

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        *,
        algorithm: Algorithm,
        reward_functions: Sequence[RewardFunction],
        rewards: RewardsConfig,
        regularizers: Sequence[Regularizer] = (),
        guidance: Callable[[Tools], Guide] | None = None,
        dynamic: Callable[[Tools], DynamicSampling] | None = None,
        jumps: PeriodicJumps | None = None,
        watch: Watch | None = None,
        peft_config: PeftConfig | None = None,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        _check_arguments(args, algorithm)
        self.watch = watch or Watch()
        super().__init__(
            model=model,
            reward_funcs=[_rewards_of_trl],
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            # Jumps come first, so that a step is evaluated and saved as it is after its jump.
            callbacks=[*([jumps] if jumps is not None else []), *(callbacks or []), self.watch],
            peft_config=peft_config,
        )
        attach_token_stats(self._base(self.model))
        if self.ref_model is not None:
            attach_token_stats(self._base(self.ref_model))
        self.algorithm = algorithm
        self.regularizers, self.needs = list(regularizers), all_needs(regularizers)
        self.group_filter = build_group_filter(algorithm.group_filter)
        self.reward_functions = list(reward_functions)
        self.rewards_config = rewards
        self.latest_completions: dict[str, list[Any]] = {}  # of the newest rollouts, all ranks, on the main process
        self._step_sums = StepSums()
        self._frozen = FrozenPass(
            self.accelerator, args.per_device_train_batch_size, self._tokenizer.pad_token_id, self.temperature
        )
        self._step_tokens = partial(
            step_tokens, algorithm=algorithm, seed=args.seed, gather=partial(gather_ragged, self.accelerator)
        )
        self.scorer = PolicyScorer(lambda: self.model, self._tokenizer, self._frozen, self.chat_template_kwargs)
        self.offers = scorer_offer(self.reward_functions, self.scorer)
        self.guidance = None if guidance is None else guidance(self._tools())
        self.dynamic = None if dynamic is None else dynamic(self._tools())
        others = {"group_filter": self.group_filter, "guidance": self.guidance, "watch": self.watch.stateful}
        self._plugins: dict[str, Stateful] = {each.name: each for each in self.regularizers}
        self._plugins |= {name: each for name, each in others.items() if each is not None}
        self.jumps = jumps
        if jumps is not None:
            jumps.attach(Host(self.accelerator, self.record, self._forget_rollouts), self.model)

    # ---- the step ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> list[Microbatch]:
        scored = self.guide(self.resample(self.verify(self.rollout(inputs))))
        advantages = self.advantages(scored, self.reward_penalties(scored.rollouts))
        return self.microbatches(scored.rollouts, advantages)

    def verify(self, rollouts: Rollouts) -> ScoredRollouts:
        """Every reward of every completion, and the verifier's outcome."""
        with self._timed("verify"):
            verdicts = self._verdicts(rollouts)
        self.record(mean_shares(self.accelerator, verdicts))
        return ScoredRollouts(rollouts, verdicts)

    def _verdicts(self, rollouts: Rollouts) -> Verdicts:
        return verify(
            self.reward_functions,
            self.rewards_config,
            step=self.state.global_step,
            prompts=rollouts.prompts,
            completions=rollouts.completions,
            completion_ids=rollouts.completion_ids,
            columns=rollouts.columns,
            prompt_ids=rollouts.group_ids,
            trainer_state=self.state,
            log_extra=self._log_completion_extra,
            log_metric=self._log_metric,
            **self.offers,
        )

    def resample(self, scored: ScoredRollouts) -> ScoredRollouts:
        """Rollouts in which prompts that teach nothing may have made room for others."""
        if self.dynamic is None:
            return scored
        with self._timed("resample"):
            resampled = self.dynamic(scored, self.state.global_step)
        self.record(resampled.metrics)
        return resampled.scored

    def guide(self, scored: ScoredRollouts) -> ScoredRollouts:
        """Rollouts in which prompts that the policy failed may have been sampled again with help."""
        if self.guidance is None:
            return scored
        with self._timed("guide"):
            guided = self.guidance(scored, self.state.global_step)
        self.record(guided.metrics)
        return guided.scored

    def reward_penalties(self, rollouts: Rollouts) -> list[Tensor]:
        """What the divergence from the reference takes off the reward of every token; nothing if it is in the loss."""
        algorithm = self.algorithm
        if algorithm.kl_coef == 0 or algorithm.kl_placement == "loss":
            return []
        loss_masks = loss_masks_of(rollouts, algorithm.overlong_filter)
        columns = zip(rollouts.loss_context_ids, rollouts.completion_ids, loss_masks, strict=True)
        rows = [TrainRow(context, completion, mask, 0.0) for context, completion, mask in columns]
        logprobs = self._frozen.logprobs(self.model, rows)
        masks = [torch.tensor(mask, device=self.accelerator.device) for mask in loss_masks]
        references = self._ref_logprobs(rows)
        return reward_penalties(logprobs, references, masks, estimator=algorithm.kl_estimator, coef=algorithm.kl_coef)

    def advantages(self, scored: ScoredRollouts, penalties: Sequence[Tensor] = ()) -> list[float] | list[Tensor]:
        """Advantages of this rank's completions, or [T] of their tokens; statistics are of all ranks."""
        result = step_advantages(scored, penalties, self.algorithm, self.accelerator, self.group_filter)
        check_unscorable(result.metrics["outcome/unscorable_frac"], self.rewards_config)
        self.record(result.metrics)
        self.latest_completions = gather_table(completions_table(scored, result.of_completions))
        unhelped = self.latest_completions
        if scored.plain is not None:
            unhelped = gather_table(completions_table(scored.plain, result.of_completions))
        self.record({"outcome/maj_at_n": majority_rate(unhelped)})
        return result.of_tokens or result.of_completions

    def microbatches(self, rollouts: Rollouts, advantages: Sequence[float | Tensor]) -> list[Microbatch]:
        """The generation batch cut into optimiser steps and those into micro-batches of similar length."""
        first = self.accelerator.process_index * len(advantages)
        rows = train_rows(rollouts, advantages, first, overlong_filter=self.algorithm.overlong_filter)
        rows = self._with_shaped_ratios(self._with_frozen_statistics(rows), rollouts)
        accumulation = self.args.gradient_accumulation_steps
        windows = step_windows(
            len(rows),
            self.args.steps_per_generation // accumulation,
            derived_seed(self.args.seed, "windows", self.state.global_step, self.accelerator.process_index),
        )
        counts = torch.tensor([count_rows([rows[i] for i in window]) for window in windows], dtype=torch.float64)
        counts = self.accelerator.reduce(counts.to(self.accelerator.device, self._count_dtype), reduction="sum")
        return [
            collate(
                [rows[window[i]] for i in chunk], denominator, self._tokenizer.pad_token_id, self.accelerator.device
            )
            for window, (tokens, sequences, num_rows) in zip(windows, counts.tolist(), strict=True)
            for denominator in [Denominator(tokens, sequences, num_rows, self.max_completion_length)]
            for chunk in group_by_length([rows[i].length for i in window], accumulation)
        ]

    def _compute_loss(self, model: torch.nn.Module, inputs: Microbatch) -> Tensor:
        scored_mask, ids, proxy = support_query(inputs)
        read = read_completions(
            model, inputs, self.temperature, self.needs.live, scored_mask=scored_mask, scored_ids=ids
        )
        if self.token_values is not None:
            self.token_values.add(inputs, read.stats)
        step_loss = objective(
            read.stats,
            inputs,
            self.algorithm,
            self.regularizers,
            step=self.state.global_step,
            support=None if read.scores is None else SupportLogprobs(read.scores, proxy),
        )
        self.watch.see(inputs, read.stats, step_loss.metrics)
        self._step_sums.add(step_loss.metrics)
        if self.accelerator.sync_gradients:
            self._finish_step()
        # Shares of the global step add up over ranks, while DDP, FSDP and DeepSpeed average gradients over them.
        return step_loss.loss * self.accelerator.num_processes

    # ---- TRL's hooks ------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Microbatch:
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._is_sampling_due():
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
            if self.needs.step is not None and self.state.global_step == 0:
                sampled = [batch.sampled for batch in self._buffered_inputs]
                tokens = self._step_tokens(self._buffered_inputs, sampled, step=0)
                for regularizer in self.regularizers:
                    regularizer.start(tokens)
        position = self._step % self.args.steps_per_generation
        if self.needs.step is not None and position % self.args.gradient_accumulation_steps == 0:
            self._prepare_step(position, weights_moved=self._step % generate_every != 0)
        return self._buffered_inputs[position]

    def _prepare_step(self, first: int, weights_moved: bool) -> None:
        """Lets the regularisers see the whole optimiser step, under the current weights, before its first loss."""
        window = slice(first, first + self.args.gradient_accumulation_steps)
        batches = self._buffered_inputs[window]
        currents = [batch.sampled for batch in batches]
        if weights_moved:
            currents = [self._frozen.of_batch(self.model, batch, self.needs.step) for batch in batches]
        tokens = self._step_tokens(batches, currents, step=self.state.global_step)
        self._buffered_inputs[window], metrics = prepare_step(batches, self.regularizers, tokens)
        self.record(metrics)

    @property
    def plugins(self) -> dict[str, Stateful]:
        return self._plugins

    @property
    def judge(self) -> Judge:
        return shared_judge(self.rewards_config.workers, limits_of(self.rewards_config))

    def _tools(self) -> Tools:
        return Tools(
            self.accelerator,
            self._sample_apart,
            self._verdicts,
            count_tokens=lambda prompt: len(self._tokenize_prompts([prompt])[0][0]),
            encode=partial(encoded, self._tokenizer, self.max_completion_length),
            scorer=self.scorer,
        )

    # ---- helpers ----------------------------------------------------------------------------------------------------

    @property
    def _count_dtype(self) -> torch.dtype:
        return torch.float32 if self.accelerator.device.type == "mps" else torch.float64

    def _base(self, model: torch.nn.Module) -> PreTrainedModel:
        unwrapped = self.accelerator.unwrap_model(model)
        return unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped

    def _with_frozen_statistics(self, rows: list[TrainRow]) -> list[TrainRow]:
        """Adds what the loss takes from frozen weights: old log-probs when the weights move before the rows are used
        up, reference ones for a KL penalty, and the statistics under the sampling policy that a regulariser needs.
        """
        generate_every = self.args.steps_per_generation * self.num_iterations
        is_off_policy = generate_every != self.args.gradient_accumulation_steps or self.use_vllm
        if is_off_policy or self.needs.step is not None:
            with self._timed("old_logprobs"):
                rows = self._frozen.with_sampled(self.model, rows, self.needs, keep_old=is_off_policy)
        if self.algorithm.kl_coef > 0 and self.algorithm.kl_placement == "loss":
            rows = [replace(row, ref_logprobs=ref) for row, ref in zip(rows, self._ref_logprobs(rows), strict=True)]
        return rows

    def _with_shaped_ratios(self, rows: list[TrainRow], rollouts: Rollouts) -> list[TrainRow]:
        """Adds the sampler's log-probs and gamma to rows whose loss conditions on something else."""
        if self.guidance is None or not self.guidance.is_off_policy:
            return rows
        shaped = with_shaped_ratios(
            rows,
            rollouts,
            partial(self._frozen.logprobs, self.model),
            partial(gather_ragged, self.accelerator),
            quantile=self.guidance.config.shaping_quantile,
            device=self.accelerator.device,
        )
        self.record(shaped.metrics)
        return shaped.rows

    def _ref_logprobs(self, rows: Sequence[TrainRow]) -> list[Tensor]:
        model = self.ref_model or self.model
        with nullcontext() if self.ref_model else self.accelerator.unwrap_model(model).disable_adapter():
            return self._frozen.logprobs(model, rows)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.record(self.watch.check_gradient(norm))
        return norm

    def _finish_step(self) -> None:
        metrics = finish_metrics(self._step_sums.flush(self.accelerator))
        for each in self.regularizers if self.watch.check_loss(metrics) else ():
            if f"loss/{each.name}" in metrics:
                metrics[f"coef/{each.name}"] = each.coef_at(self.state.global_step)
            each.finish(metrics)
        self.record(metrics)


def _rewards_of_trl(**_: Any) -> list[float]:
    """TRL insists on a reward; ours are called by the verify stage, so this one must never be."""
    raise RuntimeError("TRL scored completions by itself: its step runs in place of RLVRTrainer's.")


def _check_arguments(args: GRPOConfig, algorithm: Algorithm) -> None:
    """Raises RecipeError where the arguments contradict the step or the algorithm."""
    if args.steps_per_generation % args.gradient_accumulation_steps:
        raise RecipeError(
            f"trainer.steps_per_generation={args.steps_per_generation} must be a multiple of "
            f"trainer.gradient_accumulation_steps={args.gradient_accumulation_steps}: the loss is normalised over"
            " the whole optimiser step, which must come from one generation."
        )
    if args.beta != algorithm.kl_coef:
        raise RecipeError(
            f"args.beta={args.beta} must equal algorithm.kl_coef={algorithm.kl_coef}: by it TRL decides whether to"
            " load the reference model."
        )
