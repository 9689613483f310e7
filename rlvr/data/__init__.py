"""From a data source in a recipe to rows, and from rows to prompts that a tokenizer can take."""

from rlvr.data.prompts import build_dataset, token_ids
from rlvr.data.sources import load_rows

__all__ = ["build_dataset", "load_rows", "token_ids"]
