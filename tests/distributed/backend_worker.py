"""Runs a recipe under the engine of its launch configuration: backend_worker.py FOLDER PROCESSES CASE...

With the recipe's own commands, on real samples: greedy ones, which are the same however they are spread over processes.
Leaves the run, and what the engine did with the weights, in FOLDER/CASE.
"""

import json
import sys
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from rlvr import building, run
from rlvr.config import load_recipe
from tests.conftest import ROOT
from tests.distributed.sharded_worker import prepared_engine

RECIPE = ROOT / "tests" / "distributed" / "backend_recipe.yaml"
LORA = [
    "model.lora={rank: 4, alpha: 8, modules_to_save: [norm]}",
    "algorithm.kl_coef=0.1",
    "trainer.gradient_checkpointing=true",
    "trainer.learning_rate=10.0",  # enough for A to move in its second step by more than its rounding
    "trainer.max_steps=2",
]

# What each case changes in the recipe. The second step of LoRA has a penalty and a gradient for both factors.
CASES: dict[str, list[str]] = {
    "full": ["trainer.max_steps=1"],
    "lora": LORA,
    "qlora": [*LORA, "model.quantization=4bit", "model.dtype=float32"],
}


def train(folder: Path, case: str, processes: int, options: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Any] = {}
    load_policy, build_trainer = building.load_policy, run.build_trainer

    def watched_load(*args: Any) -> PreTrainedModel:
        policy = load_policy(*args)
        embeddings = policy.get_input_embeddings().weight
        seen["loaded_sharded"] = hasattr(embeddings, "ds_id") and embeddings.numel() == 0
        return policy

    def watched_build(*args: Any) -> Any:
        trainer = seen["trainer"] = build_trainer(*args)
        if isinstance(trainer.model, PeftModel) and trainer.accelerator.is_main_process:
            save_file(get_peft_model_state_dict(trainer.model), folder / "start.safetensors")
        if trainer.is_deepspeed_enabled:
            # An offloaded optimiser would be DeepSpeed's Adam for CPUs, which takes minutes to compile; torch's serves.
            trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
        return trainer

    building.load_policy, run.build_trainer = watched_load, watched_build
    try:
        sizes = [f"trainer.output_dir={folder / 'run'}", f"trainer.per_device_train_batch_size={8 // processes}"]
        overrides = [*sizes, *CASES[case], *options]
        run.run_recipe(load_recipe(RECIPE, overrides), resume=False)
    finally:
        building.load_policy, run.build_trainer = load_policy, build_trainer
    trainer = seen["trainer"]
    layers = trainer._base(trainer.model).model.layers
    facts = {
        "loaded_sharded": seen["loaded_sharded"],
        "sharded_layers": sum(isinstance(layer, FSDPModule) for layer in layers),
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "processes": trainer.accelerator.num_processes,
        "engine": trainer.accelerator.distributed_type.value,
    }
    if trainer.accelerator.is_main_process:
        (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    engine = prepared_engine()
    given = ["trainer.use_cpu=true", *(f"trainer.{name}={json.dumps(value)}" for name, value in engine.items())]
    for each in sys.argv[3:]:
        train(Path(sys.argv[1]) / each, each, int(sys.argv[2]), given)
