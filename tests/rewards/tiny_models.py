"""Tiny models with random weights, saved as real ones are."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

POSITIONS = 256


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def saved(folder: Path, kind: str, num_labels: int = 1) -> str:
    """A Llama of that class of transformers, with its tokenizer, in the folder."""
    tokenizer = byte_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
        num_labels=num_labels,
    )
    return _write(folder, getattr(transformers, kind), config, tokenizer, seed=num_labels)


def saved_gpt2(folder: Path) -> str:
    """A language model that tells absolute positions apart, as rotary embeddings do not."""
    tokenizer = byte_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    return _write(folder, transformers.GPT2LMHeadModel, config, tokenizer, seed=0)


def _write(folder: Path, kind: type, config: object, tokenizer: transformers.PreTrainedTokenizerFast, seed: int) -> str:
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
