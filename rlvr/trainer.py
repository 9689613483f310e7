"""The training step on TRL's trainer. This is the only file that touches TRL's private methods.

TRL keeps loading, engines, data loading, checkpoints and logging; the step itself is ours:

    rollout -> verify -> advantage -> loss
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rlvr.batching import collate, count_rows, group_by_length, loss_masks_of, sampling_logprobs_of, step_windows
from rlvr.config import Algorithm
from rlvr.config.schema import RewardsConfig
from rlvr.errors import RecipeError, RunAborted
from rlvr.objectives.advantage import ADVANTAGES
from rlvr.objectives.aggregation import Denominator
from rlvr.objectives.objective import finish_metrics, objective
from rlvr.policy import attach_token_stats, completion_stats
from rlvr.reporting.completions import completions_table
from rlvr.reporting.metrics import rollout_metrics
from rlvr.rollout import make_rollouts
from rlvr.types import Microbatch, Rollouts, ScoredRollouts, TrainRow
from rlvr.verification import RewardFunction, verify


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
        self.reward_functions = list(reward_functions)
        self.rewards_config = rewards
        self.latest_completions: dict[str, list[Any]] = {}  # of the newest rollouts, all ranks, on the main process
        self._step_sums: dict[str, Tensor] = {}

    # ---- the step ---------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> list[Microbatch]:
        rollouts = self.rollout(inputs)
        scored = self.verify(rollouts)
        advantages = self.advantages(scored)
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
                self.rewards_config.verifier_name,
                self.rewards_config.correct_at,
                prompts=rollouts.prompts,
                completions=rollouts.completions,
                completion_ids=rollouts.completion_ids,
                columns=rollouts.columns,
                trainer_state=self.state,
                log_extra=self._log_completion_extra,
                log_metric=self._log_metric,
            )
        return ScoredRollouts(rollouts, verdicts)

    def advantages(self, scored: ScoredRollouts) -> list[float]:
        """Advantages of this rank's completions; groups may lie across ranks, so statistics are of all ranks."""
        verdicts, rollouts = scored.verdicts, scored.rollouts
        rewards = self._gather_floats([verdicts.rewards]).squeeze(1)
        outcomes = self._gather_floats([verdicts.outcomes]).squeeze(1)
        components = self._gather_floats(list(zip(*verdicts.components, strict=True)))
        loss_masks = loss_masks_of(rollouts, self.algorithm.overlong_filter)
        num_tokens = self._gather_floats([[float(sum(mask)) for mask in loss_masks]]).squeeze(1)
        group_ids = self.accelerator.gather(torch.tensor(rollouts.group_ids, device=self.accelerator.device))
        self._abort_when_unscorable(torch.isnan(rewards).float().mean().item())

        rule = ADVANTAGES[self.algorithm.advantage]
        advantages = rule(
            rewards,
            group_ids,
            num_tokens=num_tokens,
            ddof=self.algorithm.advantage_ddof,
            eps=self.algorithm.advantage_eps,
        )
        for name, value in rollout_metrics(
            verdicts.names, components, rewards, outcomes, group_ids, advantages
        ).items():
            self._metrics["train"][name].append(value)
        first = self.accelerator.process_index * len(rollouts.group_ids)
        local = advantages[first : first + len(rollouts.group_ids)].tolist()
        self.latest_completions = self._gather_table(completions_table(scored, local))
        return local

    def microbatches(self, rollouts: Rollouts, advantages: Sequence[float]) -> list[Microbatch]:
        """The generation batch cut into optimiser steps and those into micro-batches of similar length."""
        loss_masks = loss_masks_of(rollouts, self.algorithm.overlong_filter)
        rows = [
            TrainRow(context, completion, mask, advantage, sampling_logprobs=sampling)
            for context, completion, mask, advantage, sampling in zip(
                rollouts.context_ids,
                rollouts.completion_ids,
                loss_masks,
                advantages,
                sampling_logprobs_of(rollouts),
                strict=True,
            )
        ]
        rows = self._with_frozen_logprobs(rows)
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
            for chunk in group_by_length([_length(rows[i]) for i in window], accumulation)
        ]

    def _compute_loss(self, model: torch.nn.Module, inputs: Microbatch) -> Tensor:
        step_loss = objective(completion_stats(model, inputs, self.temperature), inputs, self.algorithm)
        for name, value in step_loss.metrics.items():
            self._step_sums[name] = self._step_sums.get(name, torch.zeros_like(value)) + value
        if self.accelerator.sync_gradients:
            self._flush_step_sums()
        # Shares of the global step add up over ranks, while DDP, FSDP and DeepSpeed average gradients over them.
        return step_loss.loss * self.accelerator.num_processes

    # ---- TRL's hooks ------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> Microbatch:
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self._buffered_inputs is None or self._step % generate_every == 0:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

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

    def _with_frozen_logprobs(self, rows: list[TrainRow]) -> list[TrainRow]:
        """Adds old log-probs when the weights move before the rows are used up, reference ones for a KL penalty."""
        generate_every = self.args.steps_per_generation * self.num_iterations
        is_off_policy = generate_every != self.args.gradient_accumulation_steps or self.use_vllm
        old = self._frozen_logprobs(self.model, rows) if is_off_policy else [None] * len(rows)
        ref: Sequence[Tensor | None] = [None] * len(rows)
        if self.algorithm.kl_coef > 0:
            without_adapter = (
                nullcontext() if self.ref_model else self.accelerator.unwrap_model(self.model).disable_adapter()
            )
            with without_adapter:
                ref = self._frozen_logprobs(self.ref_model or self.model, rows)
        return [replace(row, old_logprobs=o, ref_logprobs=r) for row, o, r in zip(rows, old, ref, strict=True)]

    @torch.no_grad()
    def _frozen_logprobs(self, model: torch.nn.Module, rows: Sequence[TrainRow]) -> list[Tensor]:
        logprobs: list[Tensor] = [torch.empty(0)] * len(rows)
        unused = Denominator(1.0, 1.0, 1.0, 1)
        for chunk in group_by_length([_length(row) for row in rows], self.args.steps_per_generation):
            batch = collate([rows[i] for i in chunk], unused, self._tokenizer.pad_token_id, self.accelerator.device)
            with self.accelerator.autocast():
                values = completion_stats(model, batch, self.temperature).logprobs
            for position, i in enumerate(chunk):
                logprobs[i] = values[position, : len(rows[i].completion_ids)]
        return logprobs

    def _gather_floats(self, columns: Sequence[Sequence[float | None]]) -> Tensor:
        """[B over all ranks, len(columns)], None as NaN."""
        values = [[float("nan") if value is None else value for value in column] for column in columns]
        return self.accelerator.gather(torch.tensor(values, device=self.accelerator.device).T.contiguous())

    def _gather_table(self, table: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: gather_object(values) for name, values in sorted(table.items())}

    def _abort_when_unscorable(self, share: float) -> None:
        if share > self.rewards_config.max_unscorable:
            raise RunAborted(
                f"The verifier {self.rewards_config.verifier_name!r} gave no verdict on {share:.0%} of this step's"
                f" completions, over rewards.max_unscorable={self.rewards_config.max_unscorable:.0%}; check it with its"
                " reference answers, or raise the limit."
            )

    def _flush_step_sums(self) -> None:
        names = sorted(self._step_sums)
        totals = self.accelerator.reduce(torch.stack([self._step_sums[name] for name in names]), reduction="sum")
        for name, value in finish_metrics(dict(zip(names, totals, strict=True))).items():
            self._metrics["train"][name].append(value.item())
        self._step_sums = {}

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


def _length(row: TrainRow) -> int:
    return len(row.context_ids) + len(row.completion_ids)
