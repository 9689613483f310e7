"""An engine with weights of its own behind TRL's interface to vLLM, which cannot run on a CPU."""

from typing import Any

import torch

from rlvr.trainer import RLVRTrainer
from tests.conftest import tiny_model


class SeparateEngine:
    """What the trainer uses of trl.generation.VLLMGeneration in server mode, over a second copy of the policy.

    Its weights arrive by `sync_weights` only, it takes every n-th prompt for n completions, draws from a generator of
    its own, and knows of vLLM's sampling parameters the temperature, top_k and a request's seed.
    """

    def __init__(self, trainer: RLVRTrainer) -> None:
        self.source = trainer.accelerator.unwrap_model(trainer.model)
        self.model = tiny_model(seed=99).eval()
        self.generator = torch.Generator().manual_seed(3)
        self.temperature, self.top_p, self.top_k = trainer.temperature, trainer.top_p, trainer.top_k
        self.min_p, self.repetition_penalty = trainer.min_p, trainer.repetition_penalty
        self.max_completion_length = trainer.max_completion_length
        self.generation_kwargs: dict[str, Any] = {}
        self.num_syncs = 0
        self.reports_logprobs = True

    def sync_weights(self) -> None:
        self.num_syncs += 1
        with torch.no_grad():
            for own, other in zip(self.model.parameters(), self.source.parameters(), strict=True):
                own.copy_(other)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], images: None, num_generations: int, profiler: Any) -> tuple[Any, ...]:
        taken = [ids for ids in prompts[::num_generations] for _ in range(num_generations)]
        assert len(taken) == len(prompts)
        completions, logprobs = zip(*map(self._complete, taken), strict=True)
        return taken, list(completions), list(logprobs), None

    def _complete(self, prompt: list[int]) -> tuple[list[int], list[list[float | None]]]:
        settings = {"temperature": self.temperature, "top_k": self.top_k} | self.generation_kwargs
        generator = self.generator
        if "seed" in settings:
            generator = torch.Generator().manual_seed(settings["seed"])
        ids, logprobs = list(prompt), []
        while len(ids) - len(prompt) < self.max_completion_length and (len(ids) == len(prompt) or ids[-1] != 1):
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[settings.get("suppress_tokens", [])] = float("-inf")
            if settings["top_k"]:
                logits[logits < logits.topk(settings["top_k"]).values[-1]] = float("-inf")
            scores = (logits / (settings["temperature"] or 1.0)).log_softmax(-1)
            greedy = scores.argmax(dim=-1, keepdim=True)
            drawn = torch.multinomial(scores.exp(), 1, generator=generator) if settings["temperature"] else greedy
            ids.append(int(drawn))
            logprobs.append([scores[drawn].item() if self.reports_logprobs else None])
        return ids[len(prompt) :], logprobs


def with_separate_engine(trainer: RLVRTrainer) -> tuple[RLVRTrainer, SeparateEngine]:
    """The trainer with such an engine in place of the model's own `generate`."""
    engine = SeparateEngine(trainer)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, engine, -1
    return trainer, engine
