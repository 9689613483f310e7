"""The training step on TRL's trainer. This is the only file that touches TRL's private methods.

TRL keeps loading, engines, data loading, checkpoints and logging; the step itself is ours:

    rollout -> verify -> advantage -> loss
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from rlvr.advantages import step_advantages
from rlvr.batching import (
    collate,
    count_rows,
    group_by_length,
    loss_masks_of,
    sampling_logprobs_of,
    step_windows,
    support_query,
)
from rlvr.config import Algorithm
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RecipeError
from rlvr.frozen import FrozenPass
from rlvr.gathering import gather_ragged, gather_table
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.group_filter import build_group_filter
from rlvr.objectives.objective import finish_metrics, objective
from rlvr.objectives.regularizers import Regularizer, all_needs
from rlvr.objectives.regularizers.base import StepTokens
from rlvr.objectives.regularizers.step import prepare_step, step_tokens
from rlvr.objectives.reward_kl import reward_penalties
from rlvr.ops.support import SupportLogprobs
from rlvr.ops.token_stats import StatsRequest, TokenStats
from rlvr.policy import attach_token_stats, completion_stats, read_completions
from rlvr.policy_scorer import scorer_offer
from rlvr.reporting.completions import completions_table
from rlvr.reporting.metrics import majority_rate, mean_shares
from rlvr.reporting.step_sums import StepSums
from rlvr.rollout import make_rollouts
from rlvr.types import Microbatch, Rollouts, ScoredRollouts, TrainRow
from rlvr.verification import RewardFunction, check_unscorable, verify

REGULARIZERS_FILE = "regularizers.json"  # in a checkpoint: what regularisers and the group filter remember


class RLVRTrainer(GRPOTrainer):
    """GRPO-style policy optimisation with verifiable rewards.

    `args` sets sizes, sampling and optimisation; `algorithm` the objective; `rewards` what is optimised and which of
    the functions is the verifier. `train_dataset` needs the columns `prompt` and `prompt_id`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        *,
        algorithm: Algorithm,
        reward_functions: Sequence[RewardFunction],
        rewards: RewardsConfig,
        regularizers: Sequence[Regularizer] = (),
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
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
        super().__init__(
            model=model,
            reward_funcs=[_rewards_of_trl],
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        attach_token_stats(self._base(self.model))
        if self.ref_model is not None:
            attach_token_stats(self._base(self.ref_model))
        self.algorithm = algorithm
        self.regularizers, self.needs = list(regularizers), all_needs(regularizers)
        self.group_filter = build_group_filter(algorithm.group_filter)
        filters = {} if self.group_filter is None else {"group_filter": self.group_filter}
        self._remembering = {each.name: each for each in self.regularizers} | filters
        self.reward_functions = list(reward_functions)
        self.rewards_config = rewards
        self.latest_completions: dict[str, list[Any]] = {}  # of the newest rollouts, all ranks, on the main process
        self._step_sums = StepSums()
        self._frozen = FrozenPass(
            self.accelerator, args.per_device_train_batch_size, self._tokenizer.pad_token_id, self.temperature
        )
        self.offers = scorer_offer(
            self.reward_functions, lambda: self.model, self._tokenizer, self._frozen, self.chat_template_kwargs
        )

    # ---- the step ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> list[Microbatch]:
        rollouts = self.rollout(inputs)
        scored = self.verify(rollouts)
        advantages = self.advantages(scored, self.reward_penalties(rollouts))
        return self.microbatches(rollouts, advantages)

    def rollout(self, rows: Sequence[Mapping[str, Any]]) -> Rollouts:
        """Samples one completion per row with TRL's engine."""
        with self._timed("rollout"):
            generated = self._generate([row["prompt"] for row in rows])
        prompt_ids, completion_ids, tool_masks, completions, sampling_logprobs = generated[:5]
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["completions/truncated_frac"] += metrics.pop("completions/clipped_ratio")
        return make_rollouts(
            rows,
            prompt_ids,
            completion_ids,
            completions,
            generated_masks=tool_masks,
            sampling_logprobs=sampling_logprobs,
            end_token_ids=self.eos_token_ids,
        )

    def verify(self, rollouts: Rollouts) -> ScoredRollouts:
        """Every reward of every completion, and the verifier's outcome."""
        with self._timed("verify"):
            verdicts = verify(
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
        self._record(mean_shares(self.accelerator, verdicts))
        return ScoredRollouts(rollouts, verdicts)

    def reward_penalties(self, rollouts: Rollouts) -> list[Tensor]:
        """What the divergence from the reference takes off the reward of every token; nothing if it is in the loss."""
        algorithm = self.algorithm
        if algorithm.kl_coef == 0 or algorithm.kl_placement == "loss":
            return []
        loss_masks = loss_masks_of(rollouts, algorithm.overlong_filter)
        columns = zip(rollouts.context_ids, rollouts.completion_ids, loss_masks, strict=True)
        rows = [TrainRow(context, completion, mask, 0.0) for context, completion, mask in columns]
        logprobs = self._frozen.logprobs(self.model, rows)
        masks = [torch.tensor(mask, device=self.accelerator.device) for mask in loss_masks]
        return reward_penalties(
            logprobs,
            self._ref_logprobs(rows),
            masks,
            estimator=algorithm.kl_estimator,
            coef=algorithm.kl_coef,
        )

    def advantages(self, scored: ScoredRollouts, penalties: Sequence[Tensor] = ()) -> list[float] | list[Tensor]:
        """Advantages of this rank's completions, or [T] of their tokens; statistics are of all ranks."""
        result = step_advantages(scored, penalties, self.algorithm, self.accelerator, self.group_filter)
        check_unscorable(result.metrics["outcome/unscorable_frac"], self.rewards_config)
        self._record(result.metrics)
        self.latest_completions = gather_table(completions_table(scored, result.of_completions))
        self._record({"outcome/maj_at_n": majority_rate(self.latest_completions)})
        return result.of_tokens or result.of_completions

    def microbatches(self, rollouts: Rollouts, advantages: Sequence[float | Tensor]) -> list[Microbatch]:
        """The generation batch cut into optimiser steps and those into micro-batches of similar length."""
        loss_masks = loss_masks_of(rollouts, self.algorithm.overlong_filter)
        rows = [
            TrainRow(context, completion, mask, advantage, row_id, sampling_logprobs=sampling)
            for row_id, context, completion, mask, advantage, sampling in zip(
                itertools.count(self.accelerator.process_index * len(advantages)),
                rollouts.context_ids,
                rollouts.completion_ids,
                loss_masks,
                advantages,
                sampling_logprobs_of(rollouts),
                strict=False,  # the row ids have no end
            )
        ]
        rows = self._with_frozen_statistics(rows)
        accumulation = self.args.gradient_accumulation_steps
        windows = step_windows(
            len(rows),
            self.args.steps_per_generation // accumulation,
            self._derived_seed("windows", self.state.global_step),
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
        step_loss = objective(
            read.stats,
            inputs,
            self.algorithm,
            self.regularizers,
            step=self.state.global_step,
            support=None if read.scores is None else SupportLogprobs(read.scores, proxy),
        )
        self._step_sums.add(step_loss.metrics)
        if self.accelerator.sync_gradients:
            self._finish_step()
        # Shares of the global step add up over ranks, while DDP, FSDP and DeepSpeed average gradients over them.
        return step_loss.loss * self.accelerator.num_processes

    # ---- TRL's hooks ------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Microbatch:
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._buffered_inputs is None or self._step % generate_every == 0:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
            if self.needs.step is not None and self.state.global_step == 0:
                tokens = self._step_tokens(self._buffered_inputs, [batch.sampled for batch in self._buffered_inputs])
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
        currents = [self._statistics_of(batch) if weights_moved else batch.sampled for batch in batches]
        tokens = self._step_tokens(batches, currents)
        self._buffered_inputs[window], metrics = prepare_step(batches, self.regularizers, tokens)
        self._record(metrics)

    def _step_tokens(self, batches: Sequence[Microbatch], currents: Sequence[TokenStats]) -> StepTokens:
        return step_tokens(
            batches,
            currents,
            self.algorithm,
            step=self.state.global_step,
            seed=self.args.seed,
            gather=partial(gather_ragged, self.accelerator),
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            states = {name: each.state_dict() for name, each in self._remembering.items()}
            (folder / REGULARIZERS_FILE).write_text(json.dumps(states) + "\n")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._remembering:
            states = json.loads((Path(checkpoint) / REGULARIZERS_FILE).read_text())
            for name, each in self._remembering.items():
                each.load_state_dict(states[name])

    # ---- sampling for evaluation ------------------------------------------------------------------------------------

    def sample(self, rows: Sequence[Mapping[str, Any]], *, temperature: float) -> Rollouts:
        """Samples one completion per row without touching the training state; temperature 0 is greedy."""
        was_training = self.model.training
        self.model.eval()
        with self._sampling_at(temperature):
            rollouts = self.rollout(rows)
        self._metrics["eval"].clear()
        self.model.train(was_training)
        return rollouts

    @contextmanager
    def _sampling_at(self, temperature: float) -> Iterator[None]:
        if self.use_vllm:
            engine, kept = self.vllm_generation, self.vllm_generation.temperature
            engine.temperature = temperature
            try:
                yield
            finally:
                engine.temperature = kept
            return
        kept_kwargs, kept_config = self.generation_kwargs, self.generation_config
        options = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        self.generation_kwargs = kept_kwargs | options
        if temperature == 0:
            self.generation_kwargs |= {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
        self.generation_config = GenerationConfig(**self.generation_kwargs, disable_compile=True)
        try:
            yield
        finally:
            self.generation_kwargs, self.generation_config = kept_kwargs, kept_config

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
                frozen = self._frozen(self.model, rows, self._sampled_request, self.needs.support)
            for i, (stats, support) in enumerate(frozen):
                old = stats.logprobs if is_off_policy else None
                sampled = stats if self.needs.step is not None else None
                rows[i] = replace(rows[i], old_logprobs=old, sampled=sampled, support=support)
        if self.algorithm.kl_coef > 0 and self.algorithm.kl_placement == "loss":
            rows = [replace(row, ref_logprobs=ref) for row, ref in zip(rows, self._ref_logprobs(rows), strict=True)]
        return rows

    def _ref_logprobs(self, rows: Sequence[TrainRow]) -> list[Tensor]:
        model = self.ref_model or self.model
        with nullcontext() if self.ref_model else self.accelerator.unwrap_model(model).disable_adapter():
            return self._frozen.logprobs(model, rows)

    @property
    def _sampled_request(self) -> StatsRequest:
        """Serves the first optimiser step on these rollouts as well, as the weights are the same then."""
        return self.needs.sampled if self.needs.step is None else self.needs.sampled.merged(self.needs.step)

    @torch.no_grad()
    def _statistics_of(self, batch: Microbatch) -> TokenStats:
        assert self.needs.step is not None
        with self.accelerator.autocast():
            return completion_stats(self.model, batch, self.temperature, self.needs.step)

    def _finish_step(self) -> None:
        metrics = finish_metrics(self._step_sums.flush(self.accelerator))
        for each in self.regularizers:
            if f"loss/{each.name}" in metrics:
                metrics[f"coef/{each.name}"] = each.coef_at(self.state.global_step)
            each.finish(metrics)
        self._record(metrics)

    def _record(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _derived_seed(self, name: str, step: int) -> int:
        """A seed of its own for each use, so that no part shifts the random numbers of another."""
        text = f"{self.args.seed}/{name}/{step}/{self.accelerator.process_index}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._metrics["train" if self.model.training else "eval"][f"time/{stage}_s"].append(
            time.perf_counter() - started
        )


def _rewards_of_trl(**_: Any) -> list[float]:
    """TRL insists on a reward; ours are called by the verify stage, so this one must never be."""
    raise RuntimeError("TRL scored completions by itself: its step runs in place of RLVRTrainer's.")
