"""Calibration text of the 4-bit variant: paragraphs, turned into token ids of their own length."""

from pathlib import Path

import torch
from olive.data.registry import Registry
from transformers import AutoTokenizer


@Registry.register_dataset()
def sentences(path, **_):
    """Returns the paragraphs of a text file that lies in this folder, one a line."""
    lines = (Path(__file__).parent / path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]


@Registry.register_pre_process()
def tokenize(dataset, model_name, max_length, **_):
    """Returns (inputs, label) pairs: int64 tensors of at most max_length tokens, and a label that nobody reads."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    encoded = [tokenizer(text, truncation=True, max_length=max_length) for text in dataset]
    return [({name: torch.tensor(ids) for name, ids in one.items()}, 0) for one in encoded]
