"""Sampling with TRL's engines: the seam for rollouts, as rlvr/trainer.py is the seam for the step."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlvr.frozen import FrozenPass
from rlvr.resumable import ResumableTrainer
from rlvr.rollout import make_rollouts
from rlvr.rollout.agreement import joined
from rlvr.rollout.continuous import sample_continuously
from rlvr.rollout.engine_check import Host as EngineHost
from rlvr.rollout.probe import probe, rows_of
from rlvr.rollout.settings import sampling_at
from rlvr.rollout.spread import Sampled, entries
from rlvr.types import Rollouts
from rlvr.watching.watch import Watch


class SamplingTrainer(ResumableTrainer):
    """A trainer that samples rollouts: for a step, apart from it, for an evaluation, and to check the engine."""

    watch: Watch
    _frozen: FrozenPass

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

    def sample(self, rows: Sequence[Mapping[str, Any]], *, temperature: float) -> Rollouts:
        """Samples one completion per row without touching the training state; temperature 0 is greedy."""
        with sampling_at(self, temperature), self._aside():
            return self.rollout(rows)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Within it the policy is in evaluation mode, and what is sampled counts in no metric."""
        was_training = self.model.training
        self.model.eval()
        yield
        self._metrics["eval"].clear()
        self.model.train(was_training)

    def _probe(self, prompts: Sequence[Any], seed: int) -> tuple[Tensor, Tensor]:
        with self._aside():
            rollouts = probe(self, self.rollout, prompts, seed)
            own = self._frozen.logprobs(self.model, rows_of(rollouts))
        return torch.cat(own), joined(rollouts.sampling_logprobs or [])

    def engine_host(self) -> EngineHost:
        """What a check of the sampling engine works with."""
        accelerator = self.accelerator
        policy = accelerator.unwrap_model(self.model)
        is_float32 = policy.dtype == torch.float32 and not hasattr(policy.config, "quantization_config")
        return EngineHost(
            accelerator,
            self._probe,
            self.train_dataset["prompt"],
            self.args.seed,
            is_float32 and accelerator.mixed_precision == "no" and not self.use_vllm,
            self._is_sampling_due,
            self.record,
        )

    def _sample_apart(self, prompts: Sequence[Any]) -> list[Sampled]:
        """One completion per prompt, which belong to no group; leaves the metrics of the step's rollouts alone."""
        kept = self._metrics["train"], self.num_generations
        self._metrics["train"], self.num_generations = defaultdict(list), 1
        try:
            return entries(self.rollout([{"prompt": prompt, "prompt_id": 0} for prompt in prompts]))
        finally:
            self._metrics["train"], self.num_generations = kept

    # ---- TRL's hooks ------------------------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **more: Any) -> Any:
        if self.use_transformers_continuous_batching and not self.use_vllm:
            return sample_continuously(self, prompt_ids)
        return super()._generate_single_turn(prompt_ids, *others, **more)

    def _is_sampling_due(self) -> bool:
        generate_every = self.args.steps_per_generation * self.num_iterations
        return self._buffered_inputs is None or self._step % generate_every == 0

    def _forget_rollouts(self) -> None:
        """After the weights were replaced: the next step samples anew, from an engine that is given them."""
        self._buffered_inputs = None
        self._last_loaded_step = -1  # by which TRL knows what weights vLLM has

    # ---- metrics of the step ----------------------------------------------------------------------------------------

    def record(self, metrics: Mapping[str, float]) -> None:
        """Adds to the metrics of the current step."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = self.watch.enter(stage)
        yield
        self._metrics["train" if self.model.training else "eval"][f"time/{stage}_s"].append(
            time.perf_counter() - started
        )
