"""The micro-batches of a step whose loss or gradient is not finite, written for a person to look at."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlvr.types import Microbatch


@dataclass(frozen=True)
class SeenBatch:
    """A micro-batch and what the policy said of it, without the graph."""

    batch: Microbatch
    logprobs: Tensor  # [b, T]
    entropy: Tensor  # [b, T]
    terms: dict[str, Tensor]  # its shares of the loss's terms, scalars

    def token_values(self) -> dict[str, Tensor]:
        """What the loss is made of, [b, T] each."""
        found = {
            "logprobs": self.logprobs,
            "entropy": self.entropy,
            "advantages": self.batch.advantages,
            "old_logprobs": self.batch.old_logprobs,
            "ref_logprobs": self.batch.ref_logprobs,
            "behaviour_logprobs": self.batch.behaviour_logprobs,
        }
        return {name: values for name, values in found.items() if values is not None}


def save_batches(
    folder: Path, seen: Sequence[SeenBatch], facts: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes three files.

    `report.json`: `facts`, and which terms and rows of which micro-batch are not finite. `rows.jsonl`: every row as
    text, with its advantages and log-probabilities by token. `batch.safetensors`: the tensors, named
    "<micro-batch>.<field>".
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = dict(facts) | {"microbatches": [_findings(index, each) for index, each in enumerate(seen)]}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    with (folder / "rows.jsonl").open("w") as file:
        for index, each in enumerate(seen):
            file.writelines(json.dumps({"microbatch": index} | row) + "\n" for row in _rows(each, tokenizer))
    tensors = {f"{index}.{name}": value for index, each in enumerate(seen) for name, value in _tensors(each).items()}
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    save_file(copies, folder / "batch.safetensors")


def plain(number: float) -> float | str:
    """The number as JSON can hold it: "nan", "inf" and "-inf" are text."""
    return number if math.isfinite(number) else str(number)


def _findings(index: int, seen: SeenBatch) -> dict[str, Any]:
    terms = {name: plain(value.item()) for name, value in seen.terms.items() if not math.isfinite(value.item())}
    rows = [
        {"row": row, "row_id": row_id, "values": names}
        for row, (row_id, names) in enumerate(zip(seen.batch.row_ids.tolist(), _bad_values(seen), strict=True))
        if names
    ]
    return {"microbatch": index, "terms": terms, "rows": rows}


def _bad_values(seen: SeenBatch) -> list[list[str]]:
    """For each row, which values are not finite at a token that counts in the loss."""
    mask = seen.batch.loss_mask
    bad = {name: (mask & ~values.isfinite()).any(dim=1).tolist() for name, values in seen.token_values().items()}
    return [[name for name, rows in bad.items() if rows[row]] for row in range(len(mask))]


def _rows(seen: SeenBatch, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    batch = seen.batch
    lengths, completion_lengths = batch.attention_mask.sum(dim=1).tolist(), batch.completion_mask.sum(dim=1).tolist()
    bad = _bad_values(seen)
    for row, row_id in enumerate(batch.row_ids.tolist()):
        width = completion_lengths[row]
        yield {
            "row": row,
            "row_id": row_id,
            "not_finite": bad[row],
            "prompt": tokenizer.decode(batch.input_ids[row, : lengths[row] - width]),
            "completion": tokenizer.decode(batch.completion_ids[row, :width]),
            "loss_mask": batch.loss_mask[row, :width].tolist(),
            **{
                name: [plain(number) for number in values[row, :width].tolist()]
                for name, values in seen.token_values().items()
            },
        }


def _tensors(seen: SeenBatch) -> dict[str, Tensor]:
    """The fields of the micro-batch that are tensors, and what the policy said."""
    found = {field.name: getattr(seen.batch, field.name) for field in fields(seen.batch)}
    found |= {"logprobs": seen.logprobs, "entropy": seen.entropy}
    return {name: value for name, value in found.items() if torch.is_tensor(value)}
