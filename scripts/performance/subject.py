"""One model in a process of its own, in whatever environment runs this file; it needs nothing but that environment's libraries.

Questions come as lines of JSON on standard input, `{"question": NAME, ...}`, and answers go to standard output. The first is
always `load`. Whatever the libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_READ_PIECE = 1 << 24
# The time of the processor counts the work of all threads of this process, and no waiting for other processes.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


class Graphs:
    """ONNX graphs that run one after the other, each with what the caller feeds and what those before it gave.

    `config` are session configuration entries; all sessions share one pool of threads.
    """

    def __init__(self, paths: Sequence[str], threads: int, config: dict[str, str]) -> None:
        import onnxruntime

        if len(paths) > 1:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        self.sessions = []
        for path in paths:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.use_per_session_threads = len(paths) == 1
            options.intra_op_num_threads = threads if len(paths) == 1 else 0
            for key, value in config.items():
                options.add_session_config_entry(key, value)
            self.sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))

    def prepare(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Returns the feed as `run` takes it."""
        return feed

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Returns the outputs of all graphs by name."""
        known = dict(feed)
        for session in self.sessions:
            given = {one.name: known[one.name] for one in session.get_inputs() if one.name in known}
            known.update(zip((one.name for one in session.get_outputs()), session.run(None, given), strict=True))
        return {name: value for name, value in known.items() if name not in feed}


class Module:
    """A transformers model in PyTorch, fp32, eager or compiled."""

    def __init__(self, folder: str, auto_class: str, threads: int, compiled: bool) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        module = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()
        self.module = torch.compile(module) if compiled else module

    def prepare(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Returns the feed as tensors."""
        return {name: self.torch.from_numpy(value) for name, value in feed.items()}

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Returns the model's tensors by name."""
        with self.torch.inference_mode():
            outputs = self.module(**feed)
            return {name: value.numpy() for name, value in outputs.items() if isinstance(value, self.torch.Tensor)}


class TorchDecoder:
    """A language model in PyTorch, fp32, eager, greedy with its own key-value cache."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def times(self, prompt: Sequence[int], new_tokens: int, now: Callable[[], float]) -> list[float]:
        """Returns the seconds from the call to each new token."""
        torch, times, cache = self.torch, [], None
        ids = torch.tensor([list(prompt)])
        started = now()
        with torch.inference_mode():
            for _ in range(new_tokens):
                out = self.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
                times.append(now() - started)
        return times


class GenaiDecoder:
    """A folder of onnxruntime-genai, greedy."""

    def __init__(self, folder: str, threads: int, options: dict[str, Any]) -> None:
        import onnxruntime_genai as genai

        self.genai = genai
        config = genai.Config(folder)
        session = {"intra_op_num_threads": threads, **options}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = genai.Model(config)

    def times(self, prompt: Sequence[int], new_tokens: int, now: Callable[[], float]) -> list[float]:
        """See `TorchDecoder.times`."""
        import numpy as np

        length = len(prompt) + new_tokens
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        started, times = now(), []
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            times.append(now() - started)
        return times


class LlamaDecoder:
    """A GGUF file in llama.cpp, greedy."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)

    def times(self, prompt: Sequence[int], new_tokens: int, now: Callable[[], float]) -> list[float]:
        """See `TorchDecoder.times`."""
        import numpy as np

        self.model.reset()
        ids, times = list(prompt), []
        started = now()
        for _ in range(new_tokens):
            self.model.eval(ids)
            ids = [int(np.argmax(self.model._scores[-1]))]
            times.append(now() - started)
        return times


class LlamaJudge:
    """A GGUF file in llama.cpp that tells the logits of every token."""

    def __init__(self, path: str, threads: int, tokens: int) -> None:
        import llama_cpp

        given = {"n_ctx": tokens, "n_batch": tokens, "n_threads": threads, "n_threads_batch": threads}
        self.model = llama_cpp.Llama(path, **given, logits_all=True, verbose=False)

    def loss(self, ids: Sequence[int]) -> float:
        """Returns the sum over the tokens after the first of -log p(token | tokens before), in nats."""
        import numpy as np

        self.model.reset()
        self.model.eval(list(ids))
        rows = np.asarray(self.model._scores[: len(ids) - 1], dtype=np.float64)
        rows = rows - rows.max(axis=-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), list(ids[1:])]
        return float((np.log(np.exp(rows).sum(axis=-1)) - chosen).sum())


KINDS = {
    "graphs": Graphs,
    "module": Module,
    "torch decoder": TorchDecoder,
    "genai decoder": GenaiDecoder,
    "llama decoder": LlamaDecoder,
    "llama judge": LlamaJudge,
}


class Subject:
    """Holds the model and answers."""

    def __init__(self) -> None:
        self._model: Any = None
        self._feed: Any = None

    def load(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Loads a model of one of `KINDS`, its files in the system's cache; returns the seconds."""
        _read_once(Path(arguments.get("folder") or arguments.get("path") or arguments["paths"][0]))
        started = time.perf_counter()
        self._model = KINDS[kind](**arguments)
        return {"seconds": time.perf_counter() - started}

    def feed(self, arrays: str, into: str) -> dict[str, Any]:
        """Takes the arrays of an .npz file as the input from now on; writes what the model says of it to another."""
        import numpy as np

        self._feed = self._model.prepare(dict(np.load(arrays)))
        outputs = self._model.run(self._feed)
        np.savez(into, **outputs)
        return {"names": list(outputs)}

    def run(self, repeats: int, clock: str) -> dict[str, Any]:
        """Returns the milliseconds of every run; one more before them does not count."""
        now = CLOCKS[clock]
        gc.collect()
        self._model.run(self._feed)
        times = []
        for _ in range(repeats):
            started = now()
            self._model.run(self._feed)
            times.append(1000 * (now() - started))
        return {"milliseconds": times}

    def decode(self, prompt: list[int], new_tokens: int, clock: str) -> dict[str, Any]:
        """Returns the seconds from the call to each new token."""
        gc.collect()
        return {"seconds": self._model.times(prompt, new_tokens, CLOCKS[clock])}

    def losses(self, windows: list[list[int]]) -> dict[str, Any]:
        """Returns the summed negative log-likelihood of each window of tokens, in nats."""
        return {"losses": [self._model.loss(ids) for ids in windows]}


def _read_once(path: Path) -> None:
    """Brings the files into the system's cache, whoever ran last."""
    piece = bytearray(_READ_PIECE)
    for file in (path,) if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(piece):
                    pass


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    subject = Subject()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(subject, asked.pop("question"))(**asked)
        except Exception as error:  # told to the parent; the traceback is for the log
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # libraries keep threads that can hang or crash at exit
