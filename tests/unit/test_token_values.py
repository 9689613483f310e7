"""Log-probabilities and entropies of single tokens, from the loss's forward pass into the parquet files."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerCallback

from rlvr.reporting.completions import write_completions
from rlvr.reporting.report.completions import read_completions
from rlvr.reporting.token_values import TokenValues, pieces_of
from tests.conftest import MakeTrainer, tiny_tokenizer


def test_pieces_keep_their_spaces() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a b b <eos>")["input_ids"]
    assert pieces_of(tokenizer, ids) == ["a", " b", " b", " <eos>"]
    assert pieces_of(tokenizer, [4]) == ["b"]


def test_values_are_those_of_a_plain_forward_pass(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    """Of the first three completions of the step, at the sampler's temperature; weights that do not move."""
    trainer = make_trainer(learning_rate=0.0, max_steps=1, temperature=0.7)
    values = trainer.token_values = TokenValues(3, trainer.processing_class)
    tables: list[dict[str, Any]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            tables.append(dict(values.with_values(trainer.latest_completions)))

    trainer.add_callback(Keep())
    trainer.train()
    (table,) = tables
    assert [each is None for each in table["token_text"]] == [False] * 3 + [True] * 13
    model, tokenizer = trainer.model.eval(), trainer.processing_class
    for row in range(3):
        pieces = table["token_text"][row]
        assert len(pieces) == table["num_tokens"][row]
        words = [word for word in "".join(pieces).split() if not word.startswith("<")]
        assert " ".join(words) == table["completion"][row]  # which leaves special tokens out
        prompt = tokenizer(table["prompt"][row])["input_ids"]
        completion = tokenizer.convert_tokens_to_ids([piece.strip() for piece in pieces])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / 0.7
        logprobs = logits.log_softmax(dim=-1)
        entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        chosen = logprobs.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        assert table["token_logprob"][row] == pytest.approx(chosen.tolist(), abs=1e-4)
        assert table["token_entropy"][row] == pytest.approx(entropies.tolist(), abs=1e-4)
    again = values.with_values(trainer.latest_completions)
    assert again["token_text"] == [None] * 16  # what was kept is of one step
    for step, each in ((1, table), (2, again)):
        write_completions(each, tmp_path / "completions", step)
    assert pq.read_table(tmp_path / "completions" / "step-000001.parquet")["token_logprob"].null_count == 13
    rows = read_completions(tmp_path / "completions").rows
    assert [row["place"] for row in rows if row["tokens"] is not None] == [0, 1, 2]
