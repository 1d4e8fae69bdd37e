"""Greedy text generation of an exact number of tokens, timed token by token, by PyTorch or onnxruntime-genai."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np


class Generator(Protocol):
    """A loaded language model."""

    def times(self, prompt: Sequence[int], new_tokens: int) -> list[float]:
        """Generates `new_tokens` tokens behind `prompt`, batch 1, greedily, past any end-of-text token.

        Returns:
            Seconds from the call to each token, rising; `new_tokens` of them.
        """
        ...

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Returns fp32 logits of every position, [len(ids), vocabulary]."""
        ...


def open_generator(model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider") -> Generator:
    """Loads a language model of kind `hf`, `pytorch` or `genai`.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "genai":
        return GenaiGenerator(model, threads, on_cpu=provider == "CPUExecutionProvider")
    return TorchGenerator(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu")


class TorchGenerator:
    """The source model through transformers' own `generate`, fp32, with its key-value cache."""

    def __init__(self, model: ModelHandle, threads: int, device: str = "cpu") -> None:
        import torch

        from runner.models.torch_source import load_torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = device
        self._module: Any = load_torch(model).to(device)

    def times(self, prompt: Sequence[int], new_tokens: int) -> list[float]:
        """See `Generator.times`."""
        ids = self._torch.tensor([list(prompt)], device=self._device)
        clock = _Clock()
        with self._torch.inference_mode():
            self._module.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                streamer=clock,
                do_sample=False,
                num_beams=1,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        return clock.times

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """See `Generator.logits`."""
        with self._torch.inference_mode():
            rows = self._module(self._torch.tensor([list(ids)], device=self._device)).logits[0]
        array: np.ndarray[Any, Any] = rows.float().cpu().numpy()
        return array


class _Clock:
    """Notes when `generate` hands a token out; the first thing that it hands out is the prompt."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._prompt_seen = False
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter() - self._started)
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate` behind the last token."""


class GenaiGenerator:
    """A folder of onnxruntime-genai. Logits of every position come from a second session when the head is pruned."""

    def __init__(self, model: ModelHandle, threads: int, on_cpu: bool = False) -> None:
        from runner.models.generation import GenerationSession

        self._folder = model.folder
        self._threads = threads
        self._on_cpu = on_cpu
        self._session: GenerationSession = GenerationSession(model.folder, threads, on_cpu=on_cpu)
        self._scores = False

    def times(self, prompt: Sequence[int], new_tokens: int) -> list[float]:
        """See `Generator.times`."""
        length = len(prompt) + new_tokens
        started = time.perf_counter()
        tokens = self._session.generate(prompt, new_tokens, do_sample=False, min_length=length)
        return [time.perf_counter() - started for _ in tokens]

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """See `Generator.logits`. From the first call on the session serves every position, so time nothing behind it."""
        from runner.models.generation import GenerationSession

        if not self._scores:
            del self._session
            self._session = GenerationSession(self._folder, self._threads, every_position=True, on_cpu=self._on_cpu)
            self._scores = True
        rows: np.ndarray[Any, Any] = self._session.all_logits(ids)
        return rows
