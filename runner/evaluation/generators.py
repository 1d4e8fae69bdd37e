"""Greedy text generation of an exact number of tokens, timed token by token, by PyTorch or onnxruntime-genai."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from runner.evaluation.torch_form import TorchForm
from runner.models.handle import ModelHandle

if TYPE_CHECKING:
    import numpy as np


class Generator(Protocol):
    """A loaded language model."""

    def times(self, prompt: Sequence[int], new_tokens: int, rows: int = 1) -> list[float]:
        """Generates `new_tokens` tokens behind `prompt`, greedily, past any end-of-text token.

        Args:
            prompt: ids.
            new_tokens: how many tokens a row gets.
            rows: how often the prompt stands in the batch.

        Returns:
            Seconds from the call to each token, rising; `new_tokens` of them.
        """
        ...

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Returns fp32 logits of every position, [len(ids), vocabulary]."""
        ...


def open_generator(
    model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", form: TorchForm | None = None
) -> Generator:
    """Loads a language model of kind `hf`, `pytorch` or `genai`; `form` says how PyTorch runs it, eager in fp32 when None.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "genai":
        return GenaiGenerator(model, threads, on_cpu=provider == "CPUExecutionProvider")
    return TorchGenerator(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu", form or TorchForm())


class TorchGenerator:
    """The source model through transformers' own `generate` with its key-value cache.

    Compiled, the cache is a static one, for which transformers compiles the decoding step.
    """

    def __init__(self, model: ModelHandle, threads: int, device: str = "cpu", form: TorchForm | None = None) -> None:
        import torch

        from runner.models.torch_source import load_torch

        torch.set_num_threads(threads)
        form = form or TorchForm()
        self._torch = torch
        self._device = device
        self._module: Any = load_torch(model, form.dtype()).to(device)
        self._cache = {"cache_implementation": "static"} if form.compiled else {}

    def times(self, prompt: Sequence[int], new_tokens: int, rows: int = 1) -> list[float]:
        """See `Generator.times`."""
        ids = self._torch.tensor([list(prompt)] * rows, device=self._device)
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
                **self._cache,
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
        self._graphs = self._session.captures and not on_cpu

    def times(self, prompt: Sequence[int], new_tokens: int, rows: int = 1) -> list[float]:
        """See `Generator.times`. From the first batch on the session captures no CUDA graphs, which serve one row alone."""
        length = len(prompt) + new_tokens
        if rows > 1 and self._graphs:
            self._reopen(graphs=False)
        started = time.perf_counter()
        steps = self._session.generate_rows(prompt, rows, new_tokens, do_sample=False, min_length=length)
        return [time.perf_counter() - started for _ in steps]

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """See `Generator.logits`. From the first call on the session serves every position, so time nothing behind it."""
        if not self._scores:
            self._reopen(every_position=True)
            self._scores = True
        rows: np.ndarray[Any, Any] = self._session.all_logits(ids)
        return rows

    def _reopen(self, *, every_position: bool = False, graphs: bool = True) -> None:
        """Opens the session in another way; the one before is closed first, so that the device holds the model once."""
        from runner.models.generation import GenerationSession

        del self._session
        self._session = GenerationSession(
            self._folder, self._threads, on_cpu=self._on_cpu, every_position=every_position, graphs=graphs
        )
        self._graphs = False
