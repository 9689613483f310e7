"""A run that is stopped and goes on is, to the bit, the run that was never stopped."""

import os
import random
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.distributed.resuming import check_active, check_equal, prepare, records, run
from tests.distributed.test_sharded import CONFIGS, needs_deepspeed

pytestmark = pytest.mark.distributed
ENGINES = {
    "ddp": ROOT / "recipes/accelerate/cpu2.yaml",
    "zero2": CONFIGS / "zero2.yaml",
    "zero3": CONFIGS / "zero3.yaml",
    "fsdp2": CONFIGS / "fsdp2.yaml",
}


def test_one_process(tmp_path: Path) -> None:
    """Within a generation, twice in one pass over the prompts, at the end of the pass, and in the second."""
    prepare(tmp_path, 1)
    run(tmp_path, "whole")
    for step in (3, 6, 8, 13):
        run(tmp_path, "stopped", stop_at=step)
    run(tmp_path, "stopped")
    check_equal(tmp_path / "whole", tmp_path / "stopped")
    check_active(tmp_path / "whole")


def test_dynamic_sampling_on_two_processes(tmp_path: Path) -> None:
    """It remembers nothing: which prompts are drawn follows from the seed and the step."""
    options = ["guidance=null", "sampler.dynamic={max_rounds: 2}", "trainer.max_steps=8"]
    prepare(tmp_path, 2)
    run(tmp_path, "whole", *options, processes=2, config=ENGINES["ddp"])
    run(tmp_path, "stopped", *options, stop_at=5, processes=2, config=ENGINES["ddp"])
    run(tmp_path, "stopped", *options, processes=2, config=ENGINES["ddp"])
    check_equal(tmp_path / "whole", tmp_path / "stopped")
    assert any(record.get("dynamic/replaced_frac") for record in records(tmp_path / "whole"))


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path: Path) -> None:
    """With a checkpoint after every step, of which one stays, so that many kills come while one is written or removed.

    KILLS=50 in the environment takes some minutes.
    """
    moments = random.Random(5)
    often = ["trainer.save_strategy=steps", "trainer.save_steps=1", "checkpoints.keep_last=1"]
    prepare(tmp_path, 1)
    run(tmp_path, "whole", *often)
    kills, name = 0, "killed-0"
    while kills < int(os.environ.get("KILLS", "3")):
        early = moments.random() < 0.2 and kills > 0
        delay = -moments.uniform(0, 4) if early else moments.uniform(0, 1)
        if run(tmp_path, name, *often, kill_after=delay):
            check_equal(tmp_path / "whole", tmp_path / name)
            name = f"killed-{kills}"
        else:
            kills += 1
    run(tmp_path, name, *often)
    check_equal(tmp_path / "whole", tmp_path / name)


SLOW = ("zero2", "fsdp2")


def marks_of(engine: str) -> list[pytest.MarkDecorator]:
    return [*[needs_deepspeed] * ("zero" in engine), *[pytest.mark.slow] * (engine in SLOW)]


@pytest.mark.parametrize("engine", [pytest.param(name, marks=marks_of(name)) for name in ENGINES])
def test_two_processes(engine: str, tmp_path: Path) -> None:
    prepare(tmp_path, 2)
    run(tmp_path, "whole", processes=2, config=ENGINES[engine])
    for step in (6, 13) if engine == "ddp" else (13,):  # in the second pass, within a generation
        run(tmp_path, "stopped", stop_at=step, processes=2, config=ENGINES[engine])
    run(tmp_path, "stopped", processes=2, config=ENGINES[engine])
    check_equal(tmp_path / "whole", tmp_path / "stopped")
