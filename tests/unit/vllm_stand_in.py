"""vLLM's offline interface as rlvr/rollout/vllm_sampling.py uses it, over transformers; no test here installs vLLM."""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

KNOWN = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "stop_token_ids", "seed"}
KNOWN |= {"structured_outputs", "frequency_penalty"}
CONTROL = "STAND_IN_VISIBLE_DEVICES"


class VLLMValidationError(Exception):
    """No ValueError since some version of vLLM."""


class SamplingParams(SimpleNamespace):
    """Takes vLLM's arguments and no others."""

    def __init__(self, **options: Any) -> None:
        for name in options.keys() - KNOWN:
            raise TypeError(f"Unexpected keyword argument '{name}'")
        if options["top_k"] < -1:
            raise VLLMValidationError(f"top_k must be 0 (disable), or at least 1, got {options['top_k']}.")
        super().__init__(**options)


class Engine:
    """Draws each request by its own seed, at its temperature and from all tokens, and notes what it was asked for."""

    started: list["Engine"]  # of one test

    def __init__(self, **options: Any) -> None:
        if options["gpu_memory_utilization"] > 0.95:
            raise ValueError("Free memory on device is less than desired GPU memory\nutilization")
        assert all(each.is_over for each in self.started), "two engines at a time"
        self.options, self.is_over = options, False
        self.environment = {name: os.environ.get(name) for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", CONTROL)}
        self.asked: list[SamplingParams] = []
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(options["model"])
        self.model.eval()
        limit = options["max_model_len"] or self.model.config.max_position_embeddings
        core = SimpleNamespace(shutdown=self.shutdown)
        self.llm_engine = SimpleNamespace(engine_core=core, model_config=SimpleNamespace(max_model_len=limit))
        self.started.append(self)

    def shutdown(self) -> None:
        self.is_over = True

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], parameters: Sequence[SamplingParams], use_tqdm: bool
    ) -> list[Any]:
        assert not self.is_over
        assert not use_tqdm
        self.asked += parameters
        pairs = zip(prompts, parameters, strict=True)
        completed = [self._completed(prompt["prompt_token_ids"], each) for prompt, each in pairs]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]) for ids in completed]

    @torch.no_grad()
    def _completed(self, prompt: list[int], asked: SamplingParams) -> list[int]:
        generator = torch.Generator().manual_seed(asked.seed)
        ids: list[int] = []
        while len(ids) < asked.max_tokens and (not ids or ids[-1] not in asked.stop_token_ids):
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
            if asked.temperature == 0.0:
                ids.append(int(logits.argmax()))
            else:
                odds = (logits / asked.temperature).softmax(-1)
                ids.append(int(torch.multinomial(odds, 1, generator=generator)))
        return ids


def install(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Puts the stand-in where `import vllm` finds it; the list has every engine that is started from then on."""
    monkeypatch.setattr(Engine, "started", [], raising=False)
    parts = {
        "vllm": {"LLM": Engine, "SamplingParams": SamplingParams},
        "vllm.exceptions": {"VLLMValidationError": VLLMValidationError},
        "vllm.sampling_params": {"StructuredOutputsParams": SimpleNamespace},
        "vllm.platforms": {"current_platform": SimpleNamespace(device_control_env_var=CONTROL)},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return Engine.started
