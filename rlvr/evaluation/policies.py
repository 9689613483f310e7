"""The policy that `rlvr eval` samples: transformers' model, or vLLM's engine where the recipe has `use_vllm`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from accelerate import PartialState
from transformers import PreTrainedModel

from rlvr.config.schema import ModelConfig
from rlvr.errors import EvaluationError, RecipeError, UserError
from rlvr.evaluation.standalone import Evaluation
from rlvr.model import load_policy
from rlvr.model_paths import is_adapter
from rlvr.rollout.vllm_sampling import VLLMSampler, vllm_sampler
from rlvr.rollout.vllm_settings import field_of, is_vllm
from rlvr.verification import takes

WHERE = "--model"
INSTEAD = "set trainer.use_vllm to false"


@contextmanager
def policy_of(evaluation: Evaluation, path: str) -> Iterator[PreTrainedModel | VLLMSampler]:
    """The model at `path`, by the engine of the recipe: no other has it in memory, and none does afterwards.

    Raises UserError where there is no such model, and where vLLM is to sample and cannot.
    """
    settings = evaluation.loaded.trainer
    config = evaluation.loaded.recipe.model.model_copy(update={"path": path, "lora": None})
    if not is_vllm(settings):
        yield load_policy(config, WHERE).to(PartialState().device)
        return
    state = PartialState()
    check_vllm(evaluation, config, state.num_processes)
    device = state.device if state.num_processes > 1 else None
    with vllm_sampler(config, evaluation.tokenizer, settings, device, WHERE) as sampler:
        yield sampler


def check_vllm(evaluation: Evaluation, config: ModelConfig, num_processes: int) -> None:
    """Raises UserError for what vLLM cannot sample here, and where it is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            f"trainer.use_vllm: needs vllm, which is not installed; run pip install 'rlvr[vllm]', or {INSTEAD}"
        )
    if is_adapter(config.path):
        raise EvaluationError(
            f"{WHERE}: {config.path!r} is an adapter, which is not sampled by vLLM here; merge it by `rlvr extrapolate"
            f" weights --base BASE --tuned {config.path} --alpha 1 --out MERGED` and give MERGED, or {INSTEAD}"
        )
    if config.quantization is not None:
        raise RecipeError(
            f"model.quantization: {config.quantization!r} weights are not sampled by vLLM here; remove it, or {INSTEAD}"
        )
    asking = [each.name for each in evaluation.functions if takes(each.function, "scorer")]
    if asking:
        raise RecipeError(
            f"rewards.functions: {asking[0]} takes a scorer, which vLLM's engine cannot be; leave it out, or {INSTEAD}"
        )
    size = field_of(evaluation.loaded.trainer, "vllm_tensor_parallel_size")
    if size > 1 and num_processes > 1:
        raise RecipeError(
            f"trainer.vllm_tensor_parallel_size: {size} devices for each of {num_processes} processes are not"
            " supported; evaluate in one process, which uses them all, or set it to 1"
        )
