"""Prompts as messages: the template is applied once, rewards see messages, and generation ends where it should."""

from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from rlvr.config.schema import AlgorithmConfig, DataConfig, DataSource, RewardsConfig
from rlvr.data import build_dataset
from rlvr.trainer import RLVRTrainer
from rlvr.verification import RewardFunction
from tests.conftest import tiny_model, tiny_tokenizer, trainer_arguments

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}m{% endif %}"
seen: list[Any] = []


def looking_reward(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
    seen.append((prompts[0], completions[0]))
    return [float(len(c[-1]["content"].split())) for c in completions]


def test_messages_train_through_the_chat_template(tmp_path: Path) -> None:
    seen.clear()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    data = DataConfig(train=DataSource(dataset="unused"), system="k l")
    rows = [{"prompt": f"{letter} b", "answer": letter} for letter in "abcdefgh"]
    dataset = build_dataset(rows, data, tokenizer, "rows")
    trainer = RLVRTrainer(
        tiny_model(),
        trainer_arguments(tmp_path, max_steps=1),
        algorithm=AlgorithmConfig(preset="dapo").resolved(),
        reward_functions=[RewardFunction("look", 1.0, looking_reward)],
        rewards=RewardsConfig.model_validate({"functions": [{"use": "exact", "name": "look"}]}),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    rollouts = trainer.rollout([dataset[0]] * 4)
    assert tokenizer.decode(rollouts.context_ids[0]) == "k l a b m"
    trainer.train()
    prompt, completion = seen[-1]
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert completion[0]["role"] == "assistant"
    assert isinstance(trainer.latest_completions["prompt"][0], str)
