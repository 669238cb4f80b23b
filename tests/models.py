"""Tiny real models of several architectures, each saved as a folder with weights and a tokenizer, as on the hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from bench.cell.tasks import load_task

VOCABULARY = 512
POSITIONS = 256
END, PAD = "<|end|>", "<|pad|>"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}

# What is special about each: `odd` has no width that is a multiple of 64, the block size of 4-bit weights.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "odd": ("llama", {**GROUPED, "hidden_size": 60, "intermediate_size": 100, "head_dim": 10}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    ),
    "granite": ("granite", {**GROUPED, "logits_scaling": 4.0, "residual_multiplier": 0.5}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.25}),
    "gpt_neox": ("gpt_neox", COMMON),
    "gpt2": ("gpt2", COMMON),
}


def config(name: str, **more: Any) -> PretrainedConfig:
    kind, dimensions = CONFIGS[name]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return AutoConfig.for_model(kind, **{**dimensions, **special, **more})


def save(name: str, folder: Path, **more: Any) -> Path:
    """Save a model whose every weight is random, and large enough that masks and positions show in its logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(name, **more))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.15)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the shipped task's texts."""
    bpe = ByteLevelBPETokenizer()
    texts = [example.text for example in load_task("intents", None).train]
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY - 12, special_tokens=[END, PAD], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=PAD)
