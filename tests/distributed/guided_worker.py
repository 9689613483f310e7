"""Trains a step with guidance on scripted rollouts, saves gradients: guided_worker.py FOLDER PROCESSES [CASE...]."""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from rlvr.config.guidance import GuidanceConfig
from rlvr.config.schema import AlgorithmConfig, RewardsConfig
from rlvr.guidance.hints import HintStore
from rlvr.guidance.rules import RULES
from rlvr.guidance.stage import Guidance
from rlvr.guidance.teacher import TeacherGuidance
from rlvr.guidance.tools import Guide
from rlvr.tools import Tools
from rlvr.trainer import RLVRTrainer
from rlvr.types import Rollouts
from rlvr.verification import RewardFunction
from tests.conftest import WORDS, letter_dataset, sharp, tiny_model, tiny_tokenizer, trainer_arguments
from tests.distributed.sharded_worker import prepared_engine
from tests.distributed.worker import NUM_ROWS, GradientSaver, save_metrics

GROUP = 4
RATIO = "drop_with_ratio"
GIVEN = {"refuse_sufficient": False}  # rewards differ by row here, and a hint is tried alone on any row of its prompt
WRITTEN = GIVEN | {
    "source": "self",
    "tag": None,
    "write_template": "{answer} {level} {prompt}",
    "explain_template": None,
}

# name: (guidance, whether groups lie across ranks)
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "keep": ({"rule": "nurl", "hint_conditioning": "keep", "hints": GIVEN}, True),
    "ratio": ({"rule": "nurl", "hint_conditioning": RATIO, "hints": GIVEN}, True),
    "resampled": (
        {"rule": "nurl", "plain_rollout": "resample", "hint_conditioning": RATIO, "retries": 1, "hints": GIVEN},
        True,
    ),
    "one_rank": ({"rule": "nurl", "hint_conditioning": RATIO, "hints": GIVEN}, False),
    "one_rank_keep": ({"rule": "sage", "hint_conditioning": "keep", "max_extra_rollouts": 20, "hints": GIVEN}, False),
    "written": ({"rule": "sage", "hint_conditioning": RATIO, "hints": WRITTEN}, True),
    "exemplar": ({"rule": "exemplar", "hint_conditioning": RATIO}, True),
    "teacher": ({"rule": "teacher", "teacher": {"column": "solution"}}, True),
}
SAMPLED = "sampled"  # the same with an engine that samples: only that it ends well


def question(group: int) -> str:
    prompt: str = letter_dataset()[group]["prompt"]
    return prompt


def written_for(prompt: str) -> list[int]:
    """The completion of a prompt, whoever samples it."""
    generator = torch.Generator().manual_seed(crc32(prompt.encode()))
    length = int(torch.randint(1, 6, (1,), generator=generator))
    return [*torch.randint(3, 16, (length,), generator=generator).tolist(), 1]


def rollouts_of(rows: Sequence[tuple[int, str, list[int], float]], first: int = 0) -> Rollouts:
    """Rows of (prompt_id, prompt, completion's tokens, score), numbered from `first`."""
    tokenizer = tiny_tokenizer()
    contexts = [tokenizer(prompt)["input_ids"] for _, prompt, _, _ in rows]
    return Rollouts(
        group_ids=[prompt_id for prompt_id, _, _, _ in rows],
        prompts=[prompt for _, prompt, _, _ in rows],
        completions=[tokenizer.decode(ids, skip_special_tokens=True) for _, _, ids, _ in rows],
        prompt_ids=contexts,
        context_ids=contexts,
        completion_ids=[ids for _, _, ids, _ in rows],
        generated_masks=[[True] * len(ids) for _, _, ids, _ in rows],
        sampling_logprobs=None,
        truncated=[False] * len(rows),
        columns={
            "answer": ["b"] * len(rows),
            "score": [score for _, _, _, score in rows],
            "place": [first + i for i in range(len(rows))],
        },
    )


def step_rollouts(rank: int, num_ranks: int, spread: bool) -> Rollouts:
    """This rank's share of four groups, of which the first two are all wrong."""
    rows = []
    for index in range(NUM_ROWS):
        group = index % GROUP if spread else index // GROUP
        score = 0.0 if group < 2 else float((index + index // GROUP) % 2)
        rows.append((group, question(group), written_for(f"{index}"), score))
    first = rank * NUM_ROWS // num_ranks
    return rollouts_of(rows[first : first + NUM_ROWS // num_ranks], first)


class ScriptedTrainer(RLVRTrainer):
    spread = True

    def rollout(self, rows: Sequence[Mapping[str, Any]]) -> Rollouts:
        if "answer" in rows[0]:  # of the data set, hence the step's own
            return step_rollouts(self.accelerator.process_index, self.accelerator.num_processes, self.spread)
        return rollouts_of([(0, row["prompt"], written_for(row["prompt"]), -1.0) for row in rows])


def scripted_reward(completions: list[str], score: list[float], place: list[int], **_: Any) -> list[float]:
    """The step's own completions score as their rows say; others, half of them, by their text and row."""
    own = {tiny_tokenizer().decode(written_for(f"{index}"), skip_special_tokens=True) for index in range(NUM_ROWS)}
    rows = zip(completions, score, place, strict=True)
    return [s if c in own else float(random.Random(f"{c} {row}").random() < 0.5) for c, s, row in rows]


def teacher_reward(completions: list[str], score: list[float], **_: Any) -> list[float]:
    """The same by the text alone, as a teacher's completion is judged on any row of its prompt."""
    return scripted_reward(completions, score, [0] * len(completions))


class ByLength:
    """A scorer of a teacher's texts."""

    def render(self, prompt: str) -> str:
        return prompt

    def score_tokens(self, texts: Sequence[str], targets: Sequence[str]) -> list[list[float]]:
        return [[-float(len(text))] for text in texts]


def guide_of(settings: Mapping[str, Any], tools: Tools) -> Guide:
    config = GuidanceConfig.model_validate(settings)
    if config.teacher is not None:
        pool = {group: [" ".join(WORDS[3 + i : 5 + group + i]) for i in range(4)] for group in range(4)}
        return TeacherGuidance(config, config.teacher, pool, replace(tools, scorer=ByLength()), seed=0)
    rule, ahead = RULES[config.rule](config), {group: ("a b c", "d", "e f") for group in range(32)}
    given = None if config.hints.source == "self" else ahead
    store = HintStore(config.hints, given, lambda cases: [False] * len(cases), tools, lambda _: None)
    return Guidance(config, rule, store if rule.uses_hints else None, tools, max_prompt_length=30, seed=0)


def train_guided(folder: Path, name: str, processes: int, options: Mapping[str, Any]) -> None:
    settings, spread = CASES.get(name, CASES["ratio"])
    reward = teacher_reward if settings["rule"] == "teacher" else scripted_reward
    reward = first_letter if name == SAMPLED else reward
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"per_device_train_batch_size": NUM_ROWS // 2 // processes, "max_grad_norm": 0.0}
    trainer = (RLVRTrainer if name == SAMPLED else ScriptedTrainer)(
        sharp(tiny_model()),
        trainer_arguments(folder, **sizes, max_steps=3 if name == SAMPLED else 1, **options),
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        reward_functions=[RewardFunction("score", 1.0, reward)],
        rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "score"}]}),
        guidance=lambda tools: guide_of(settings, tools),
        train_dataset=letter_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.accelerator.num_processes == processes
    trainer.spread = spread
    if not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:  # these show no gradients
        trainer.add_callback(GradientSaver(folder / "gradient.pt"))
    trainer.train()
    save_metrics(trainer, folder / "metrics.pt")
    hints = trainer.latest_completions.get("hint", [])
    if trainer.accelerator.is_main_process:
        torch.save({"hints": hints, "outcomes": trainer.latest_completions["outcome"]}, folder / "rows.pt")


def first_letter(completions: list[str], **_: Any) -> list[float]:
    return [float(completion.split()[:1] != [] and completion.split()[0] in "abc") for completion in completions]


if __name__ == "__main__":
    engine_options = prepared_engine()
    for each in sys.argv[3:] or (*CASES, SAMPLED):
        train_guided(Path(sys.argv[1]) / each, each, int(sys.argv[2]), engine_options)
