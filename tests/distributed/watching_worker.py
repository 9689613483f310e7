"""Trains with faults on rank 1 alone: watching_worker.py FOLDER CASE...

Each rank writes `ended-RANK.txt`, with how its training ended, and rank 0 the weights.
"""

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlvr.config.watch import WatchConfig
from rlvr.errors import RunAborted
from rlvr.trainer import RLVRTrainer
from rlvr.watching.running import watched
from rlvr.watching.watch import Watch
from tests.distributed.sharded_worker import SGD, model_of, prepared_engine
from tests.distributed.worker import FixedRolloutTrainer, one_step_trainer, save_metrics, score_reward
from tests.unit.nonfinite_cases import FAULTS

# name: (steps at which something is not finite, section of the recipe, steps)
CASES: dict[str, tuple[dict[int, str], dict[str, Any], int]] = {
    "plain": ({}, {}, 2),
    "skip": ({2: "loss", 3: "gradient"}, {"on_nonfinite": "skip"}, 4),
    "stop_loss": ({2: "loss"}, {}, 3),
    "stop_gradient": ({2: "gradient"}, {}, 3),
}
STALL = WatchConfig(heartbeat_s=0.2, stall_minutes=3 / 60, on_stall="abort")


def trainer_of(
    folder: Path, case: str, watch: WatchConfig, options: Mapping[str, Any], steps: int, reward: Any = score_reward
) -> RLVRTrainer:
    model = model_of("untied")
    settings: dict[str, Any] = SGD | {"learning_rate": 0.1, "max_steps": steps} | options
    trainer = one_step_trainer(folder, "dapo", 2, model, reward=reward, watch=Watch(watch), **settings)
    faults = CASES[case][0] if trainer.accelerator.process_index == 1 else {}
    for fault, break_model in FAULTS.items():
        break_model(model, lambda fault=fault: faults.get(trainer.state.global_step + 1) == fault)
    return trainer


def train(folder: Path, case: str, options: Mapping[str, Any]) -> None:
    _, section, steps = CASES[case]
    trainer = trainer_of(folder, case, WatchConfig.model_validate(section), options, steps)
    how = "finished"
    try:
        trainer.train()
    except RunAborted as error:
        how = str(error)
    (folder / f"ended-{trainer.accelerator.process_index}.txt").write_text(how)
    if how == "finished":
        save_metrics(trainer, folder / "metrics.pt")
        trainer.save_model(str(folder / "after"))


def stall(folder: Path) -> None:
    """Rank 1 waits for ever in the reward of the second step, and so does rank 0 for it in the gathering after that."""

    def stuck_reward(completions: list[str], score: list[float], **_: Any) -> list[float]:
        if trainer.state.global_step == 1 and trainer.accelerator.process_index == 1:
            threading.Event().wait()
        return score

    trainer: FixedRolloutTrainer = trainer_of(folder, "plain", STALL, {}, 2, stuck_reward)  # type: ignore[assignment]
    with watched(STALL, folder, trainer.watch.progress):
        trainer.train()


if __name__ == "__main__":
    engine_options = prepared_engine()
    for each in sys.argv[2:]:
        target = Path(sys.argv[1]) / each
        if each == "stall":
            stall(target)
        else:
            train(target, each, engine_options)
