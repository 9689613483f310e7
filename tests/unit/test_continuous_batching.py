"""transformers' continuous batching as the engine of a run, on the CPU."""

from typing import Any

import pytest
import torch
from accelerate import DistributedType
from transformers import ContinuousBatchingConfig, GenerationConfig, Qwen3ForCausalLM

from rlvr.errors import RecipeError
from rlvr.rollout.continuous import _sized, cast_weights, generate
from rlvr.trainer import RLVRTrainer
from tests.conftest import MakeTrainer, letter_dataset, sharp, tiny_model

pytestmark = pytest.mark.usefixtures("frozen_heap")
PAGED: dict[str, Any] = {"use_transformers_continuous_batching": True}
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [3], [6, 7]]
ENGINE = ContinuousBatchingConfig(max_memory_percent=0.5)


def config_of(**settings: Any) -> GenerationConfig:
    return GenerationConfig(
        **({"max_new_tokens": 8, "do_sample": True, "eos_token_id": [1], "pad_token_id": 0} | settings)
    )


def repeated_rows(times: int = 4) -> list[dict[str, Any]]:
    return [row for row in letter_dataset(4) for _ in range(times)]


def greedy_of(prompt: list[int], length: int, end: int = 1) -> list[int]:
    """One token after the other, without a cache."""
    model, ids = sharp(tiny_model()), list(prompt)
    while len(ids) - len(prompt) < length and (len(ids) == len(prompt) or ids[-1] != end):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_completions_of_each_prompt_in_order() -> None:
    completions, logprobs = generate(
        sharp(tiny_model()), PROMPTS, config_of(do_sample=False, eos_token_id=[1, 11]), ENGINE
    )
    assert completions == [greedy_of(prompt, 8, end=11) for prompt in PROMPTS]
    assert set(map(len, completions)) == {5, 8}
    assert list(map(len, logprobs)) == list(map(len, completions))


@pytest.mark.parametrize(
    ("settings", "num_kept"), [({}, 16), ({"top_k": 2}, 2), ({"top_p": 0.5}, None), ({"min_p": 0.5}, None)]
)
def test_settings_decide_what_is_drawn_and_reported(settings: dict[str, Any], num_kept: int | None) -> None:
    torch.manual_seed(0)
    model = tiny_model()
    neutral = {"temperature": 0.3, "top_k": 0, "top_p": 1.0}
    completions, logprobs = generate(model, PROMPTS * 8, config_of(**(neutral | settings)), ENGINE)
    for prompt, completion, reported in zip(PROMPTS * 8, completions, logprobs, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.3
        probabilities = logits.softmax(-1)
        ordered = probabilities.sort(dim=-1, descending=True).values
        least = {
            "top_k": lambda o: o[:, (num_kept or 1) - 1],
            "top_p": lambda o: o.gather(1, (o.cumsum(-1) < 0.5).sum(-1, keepdim=True)).squeeze(1),
            "min_p": lambda o: 0.5 * o[:, 0],
        }.get(next(iter(settings), ""), lambda o: o[:, -1])(ordered)
        kept = torch.where(probabilities >= least.unsqueeze(1) - 1e-7, probabilities, 0.0)
        drawn = kept.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        assert (drawn > 0).all()
        torch.testing.assert_close(torch.tensor(reported), (drawn / kept.sum(-1)).log(), rtol=0, atol=1e-4)


def test_rollouts_end_where_the_policy_ends_them(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(**PAGED)
    trainer.model.train()
    rollouts = trainer.rollout(repeated_rows())
    assert trainer.model.training
    for ids, truncated in zip(rollouts.completion_ids, rollouts.truncated, strict=True):
        assert truncated == (ids[-1] != 1)
        assert len(ids) == 6 or not truncated
        assert 1 not in ids[:-1]
    assert 0 < sum(rollouts.truncated) < 16
    metrics = trainer._metrics["train"]
    assert metrics["completions/truncated_frac"] == [sum(rollouts.truncated) / 16]
    assert metrics["completions/mean_length"] == [pytest.approx(sum(map(len, rollouts.completion_ids)) / 16)]
    assert rollouts.sampling_logprobs is not None
    assert list(map(len, rollouts.sampling_logprobs)) == list(map(len, rollouts.completion_ids))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_samples_by_its_own_temperature_and_leaves_the_trainer(
    make_trainer: MakeTrainer, training: bool
) -> None:
    trainer, rows = make_trainer(model=sharp(tiny_model()), top_k=2, **PAGED), letter_dataset(6).to_list()
    trainer.model.train(training)
    greedy = trainer.sample(rows, temperature=0.0)
    encode = trainer.processing_class
    assert greedy.completion_ids == [greedy_of(encode(row["prompt"]).input_ids, 6) for row in rows]
    assert trainer.sample(rows, temperature=5.0).completion_ids != greedy.completion_ids
    assert trainer.model.training == training
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not trainer._metrics["eval"]
    assert not trainer._metrics["train"]


def trained(make_trainer: MakeTrainer, **changes: Any) -> RLVRTrainer:
    trainer = make_trainer(**PAGED, **changes)
    trainer.train()
    return trainer


def test_runs_with_equal_seeds_are_equal_and_report_the_engine(make_trainer: MakeTrainer) -> None:
    one, two = (trained(make_trainer, algorithm={"mismatch": "token_tis"}) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.model.parameters(), tiny_model().parameters(), strict=True))
    for log in one.state.log_history[:2]:
        assert log["sampler/rho_mean"] == pytest.approx(1.0, abs=1e-4)
        assert log["sampler/logprob_diff_max"] < 1e-3


def test_mixed_precision_samples_from_rounded_weights_and_trains_the_exact_ones(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(bf16=True, **PAGED)
    before = {name: (each.data_ptr(), each.clone()) for name, each in trainer.model.named_parameters()}
    frequencies = trainer.model.model.rotary_emb.inv_freq.clone()
    rollouts = trainer.rollout(repeated_rows())
    assert sum(map(len, rollouts.completion_ids)) > 16
    for name, each in trainer.model.named_parameters():
        assert each.data_ptr() == before[name][0]
        assert torch.equal(each, before[name][1])
    assert torch.equal(trainer.model.model.rotary_emb.inv_freq, frequencies)
    assert frequencies.dtype == torch.float32
    trainer.train()
    assert {each.dtype for each in trainer.model.parameters()} == {torch.float32}


def test_weights_are_cast_within_and_put_back_after_an_error() -> None:
    model = tiny_model()
    model.config.tie_word_embeddings = False
    model = Qwen3ForCausalLM(model.config)

    def fail() -> None:
        with cast_weights(model, torch.bfloat16, with_head=False):
            assert model.lm_head.weight.dtype == torch.float32
            assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    with cast_weights(model, torch.bfloat16, with_head=True):
        assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    with cast_weights(model, None, with_head=True):
        assert {each.dtype for each in model.parameters()} == {torch.float32}


# ---- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
    ],
)
def test_settings_that_the_engine_would_ignore_are_refused(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(RecipeError, match=f"cannot apply {name}; take the setting out"):
        generate(tiny_model(), PROMPTS, config_of(**settings), ENGINE)


def test_sharded_weights_are_refused(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(**PAGED)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    with pytest.raises(RecipeError, match="cannot sample from weights that are sharded by FSDP; set it to false"):
        trainer.rollout(repeated_rows())


def test_a_request_that_fails_ends_the_run() -> None:
    engine = ContinuousBatchingConfig(max_memory_percent=0.5, block_size=4, num_blocks=1, max_batch_tokens=8)
    with pytest.raises(RuntimeError, match="Continuous batching failed"):
        generate(sharp(tiny_model()), [[3] * 7, [4] * 7], config_of(eos_token_id=-1), engine)


def test_cache_on_a_cpu_is_that_of_the_requests() -> None:
    sized = _sized(ENGINE, [[1] * 40, [1] * 10], 30, torch.device("cpu"))
    assert (sized.block_size, sized.num_blocks, sized.max_batch_tokens) == (32, (3 + 1) + (2 + 1), 50)
    assert _sized(ENGINE, [[1] * 4000], 30, torch.device("cpu")).max_batch_tokens == 1024
    assert _sized(ENGINE, [[1]] * 2000, 30, torch.device("cpu")).max_batch_tokens == 2000
    own = ContinuousBatchingConfig(num_blocks=9)
    assert _sized(own, [[1]], 30, torch.device("cpu")) is own
    assert _sized(ENGINE, [[1]], 30, torch.device("cuda")) is ENGINE
