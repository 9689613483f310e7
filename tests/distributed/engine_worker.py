"""Trains with the engine checked before every phase, on one backend and engine: engine_worker.py FOLDER ENGINE."""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rlvr.config.presets import PRESETS
from rlvr.config.rollout import RolloutConfig
from rlvr.config.schema import AlgorithmConfig, RewardsConfig
from rlvr.errors import RecipeError, RunAborted
from rlvr.rollout.engine_check import EngineCheck
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction
from tests.conftest import letter_dataset, sharp, tiny_model, tiny_tokenizer, trainer_arguments, vowel_reward
from tests.distributed.sharded_worker import prepared_engine

ENGINES: dict[str, dict[str, Any]] = {
    "generate": {},
    "continuous": {"use_transformers_continuous_batching": True},
}


def trainer_of(folder: Path, engine: str, when: str, options: dict[str, Any], **changes: Any) -> RLVRTrainer:
    sizes = {"max_steps": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}
    trainer = RLVRTrainer(
        sharp(tiny_model()),
        trainer_arguments(folder, **(sizes | ENGINES[engine] | options | changes)),
        algorithm=AlgorithmConfig(preset=next(iter(PRESETS))).resolved(),
        reward_functions=[RewardFunction("reward", 1.0, vowel_reward)],
        rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "reward"}]}),
        train_dataset=letter_dataset(),
        processing_class=tiny_tokenizer(),
    )
    check = EngineCheck(RolloutConfig.model_validate({"check_engine": when}), Console(quiet=True))
    check.host = trainer.engine_host()
    trainer.add_callback(check)
    return trainer


def main(folder: Path, engine: str, options: dict[str, Any]) -> None:
    found = {}
    for when in ("off", "every_sync") if engine == "generate" else ("every_sync",):
        trainer = trainer_of(folder, engine, when, options)
        try:
            trainer.train()
        except RecipeError as error:
            found[when] = [str(error)]
            continue
        logs = trainer.state.log_history
        found[when] = [{k: v for k, v in log.items() if not k.startswith(("time/", "step_time"))} for log in logs]
    if engine == "generate":
        wrong = trainer_of(folder, engine, "start", options, generation_kwargs={"temperature": 0.8})
        try:
            wrong.train()
        except RunAborted as error:
            found["wrong"] = [str(error)]
    rank = trainer.accelerator.process_index
    (folder / f"{engine}-{rank}.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


if __name__ == "__main__":
    gc.freeze()  # continuous batching collects garbage twice a call
    engine_options = prepared_engine()
    for each in sys.argv[2:]:
        main(Path(sys.argv[1]), each, engine_options)
