"""A process that holds one loaded model and answers questions about it. Run as ``python -m runner.evaluation.subject``.

One model a process, because the threads of several sessions in one process disturb one another, and because memory can
only be told apart between processes. Questions come one JSON object a line on standard input, answers go out the same
way; whatever the libraries print goes to standard error. Arrays travel as .npz files. The process ends with its input.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.errors import RecipeError, TargetUnavailable
from runner.evaluation.latency import timed
from runner.evaluation.memory import peak_resident_bytes
from runner.evaluation.perplexity import negative_log_likelihood
from runner.evaluation.torch_form import TorchForm
from runner.models.diffusion import TASK as DRAWS
from runner.models.handle import ModelHandle
from runner.models.tasks import task_of

if TYPE_CHECKING:
    from runner.evaluation.drawers import Drawer
    from runner.evaluation.forward import Forward
    from runner.evaluation.generators import Generator
    from runner.evaluation.transcribers import Transcriber

_TURN_WARMUP = 3
_READ_PIECE = 1 << 24
_IN_TORCH = ("hf", "pytorch", "diffusers")


class Subject:
    """The model of this process. Every public method is a question; its arguments and answer are JSON data."""

    def __init__(self) -> None:
        self._forward: Forward | None = None
        self._generator: Generator | None = None
        self._transcriber: Transcriber | None = None
        self._drawer: Drawer | None = None
        self._prepared: dict[str, Any] = {}

    def load(self, model: dict[str, Any], threads: int, provider: str, generates: bool, form: str = "fp32") -> dict[str, Any]:
        """Loads the model; the libraries are imported and its files read before, so that only loading is timed.

        Args:
            model: a handle as JSON data.
            threads: threads of its operators.
            provider: execution provider; a PyTorch model runs on the device that it drives.
            generates: the model is not called input by input.
            form: how PyTorch runs it, see `TorchForm.parse`.

        Raises:
            TargetUnavailable: PyTorch is to run it on a GPU, and sees none.
        """
        handle, in_torch = ModelHandle.from_json(model), TorchForm.parse(form)
        _import_library(handle)
        if handle.kind in _IN_TORCH and provider == "CUDAExecutionProvider":
            _require_cuda()
        _read_once(handle.folder)
        started = time.perf_counter()
        if generates and task_of(handle) == "automatic-speech-recognition":
            from runner.evaluation.transcribers import open_transcriber

            self._transcriber = open_transcriber(handle, threads, provider, in_torch)
        elif generates and task_of(handle) == DRAWS:
            from runner.evaluation.drawers import open_drawer

            self._drawer = open_drawer(handle, threads, provider, in_torch)
        elif generates:
            from runner.evaluation.generators import open_generator

            self._generator = open_generator(handle, threads, provider, in_torch)
        else:
            from runner.evaluation.forward import open_forward

            self._forward = open_forward(handle, threads, provider, in_torch)
        return {"seconds": time.perf_counter() - started}

    def time(self, feed: str, warmup: int, repeats: int, pause: float) -> dict[str, Any]:
        """Times `repeats` calls on the arrays in the file `feed`."""
        forward, prepared = self._ready(feed)
        return {"seconds": timed(lambda: forward.run(prepared), warmup, repeats, pause)}

    def turn(self, feed: str, seconds: float, least: int, warmup: int = _TURN_WARMUP) -> dict[str, Any]:
        """Times calls on the arrays in `feed` for about `seconds`, at least `least` of them, after `warmup` calls and one."""
        forward, prepared = self._ready(feed)
        once = timed(lambda: forward.run(prepared), warmup, 1)[0]
        repeats = max(least, int(seconds / max(once, 1e-6)))
        return {"seconds": timed(lambda: forward.run(prepared), 0, repeats)}

    def generate(self, prompt: list[int], new_tokens: int, rows: int = 1) -> dict[str, Any]:
        """Generates greedily behind the same prompt in each of so many rows; returns the seconds to each token."""
        if self._generator is None:
            raise ValueError("load a language model first")
        gc.collect()
        return {"seconds": self._generator.times(prompt, new_tokens, rows)}

    def transcribe(self, sounds: str) -> dict[str, Any]:
        """Transcribes every sound in the .npz file `sounds`; returns the texts and the seconds that all of them took."""
        if self._transcriber is None:
            raise ValueError("load a speech model first")
        clips = list(np.load(sounds).values())
        gc.collect()
        started = time.perf_counter()
        texts = [self._transcriber.text(clip) for clip in clips]
        return {"texts": texts, "seconds": time.perf_counter() - started}

    def draw(self, prompt: str, steps: int, into: str) -> dict[str, Any]:
        """Draws one picture in at least two steps from the noise of seed 0, and writes it to the .npy file `into`.

        Returns the seconds that it took, the median ones of a step, and (height, width).
        """
        if self._drawer is None:
            raise ValueError("load a pipeline that draws first")
        from runner.models.diffusion_pipeline import Wanted

        gc.collect()
        times = [time.perf_counter()]
        picture = self._drawer.draw(Wanted(prompt, steps=steps), step_done=lambda *_: times.append(time.perf_counter()))
        seconds = time.perf_counter() - times[0]
        np.save(into, picture)
        a_step = float(np.median(np.diff(times[1:])))  # the first step comes with the reading of the prompt
        return {"seconds": seconds, "step_seconds": a_step, "size": picture.shape[:2]}

    def outputs(self, feed: str, into: str) -> dict[str, Any]:
        """Writes the outputs for the arrays in `feed` to the .npz file `into`; returns their names in order."""
        forward, prepared = self._ready(feed)
        arrays = forward.arrays(forward.run(prepared))
        np.savez(into, **arrays)  # type: ignore[arg-type]
        return {"names": list(arrays)}

    def losses(self, windows: list[list[int]]) -> dict[str, Any]:
        """Returns the summed negative log-likelihood of each window of tokens, in nats."""
        return {"losses": [negative_log_likelihood(self._logits(ids), ids) for ids in windows]}

    def peak(self) -> dict[str, Any]:
        """Returns the peak resident set so far."""
        return {"bytes": peak_resident_bytes()}

    def placement(self, model: dict[str, Any], threads: int, provider: str, feed: str) -> dict[str, Any]:
        """Returns which provider runs the nodes of a model, see `runner.evaluation.placement.placement`."""
        from runner.evaluation.placement import placement

        return placement(ModelHandle.from_json(model), threads, provider, feed)

    def how(self) -> dict[str, Any]:
        """Returns how an ONNX graph is run on a device: whether as a CUDA graph; None where nothing is replayed."""
        return {"replays": getattr(self._forward, "replays", None)}

    def _ready(self, feed: str) -> tuple[Forward, Any]:
        if self._forward is None:
            raise ValueError("load a model first")
        if feed not in self._prepared:
            self._prepared = {feed: self._forward.prepare(dict(np.load(feed)))}
        return self._forward, self._prepared[feed]

    def _logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        if self._generator is not None:
            return self._generator.logits(ids)
        if self._forward is None:
            raise ValueError("load a model first")
        row = np.asarray([ids], dtype=np.int64)
        prepared = self._forward.prepare({"input_ids": row, "attention_mask": np.ones_like(row)})
        rows: np.ndarray[Any, Any] = self._forward.arrays(self._forward.run(prepared))["logits"][0]
        return rows


def _import_library(model: ModelHandle) -> None:
    """Imports everything that loading will need, the model's own class included."""
    if model.kind == "genai":
        from runner.models.generation import import_genai

        import_genai()
    elif task_of(model) == DRAWS:
        _import_diffusers(model)
    elif model.kind == "onnx":
        import onnxruntime  # noqa: F401
    elif model.kind == "hf":
        import torch
        from transformers import AutoConfig

        from runner.models.torch_source import auto_class

        with torch.device("meta"):
            auto_class(model.task or "feature-extraction").from_config(AutoConfig.from_pretrained(model.folder))


def _import_diffusers(model: ModelHandle) -> None:
    """Of diffusers and transformers, which import a class when it is first named, only what this side needs."""
    from runner.models.diffusion import require_diffusers

    require_diffusers()
    from transformers import AutoTokenizer  # noqa: F401

    if model.kind == "diffusers":
        from runner.models.diffusion_torch import pipeline_class

        pipeline_class(model)
    else:
        import onnxruntime  # noqa: F401
        from diffusers import SchedulerMixin  # noqa: F401


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise TargetUnavailable(
            "cuda", "PyTorch, in which the original runs, sees no CUDA device", "measure on a machine that has one"
        )


def _read_once(folder: Path) -> None:
    """Brings the files into the system's cache, whoever ran last."""
    piece = bytearray(_READ_PIECE)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as stream:
                while stream.readinto(piece):
                    pass


def failure(error: Exception) -> dict[str, Any]:
    """Returns an error as JSON data for the process that asked."""
    if isinstance(error, RecipeError):
        problems = [[one.rule, one.cause, one.remedy] for one in error.problems]
        return {"problems": problems, "exit_code": error.exit_code}
    cause = "out of memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {str(error).strip()}".strip()
    return {"problems": [["measurement-failed", cause.splitlines()[0], None]], "exit_code": 1}


def main() -> None:
    """Answers until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    subject = Subject()
    for line in sys.stdin:
        asked = json.loads(line)
        question: Callable[..., dict[str, Any]] = getattr(subject, asked.pop("question"))
        try:
            answer = question(**asked)
        except Exception as error:  # told to the parent; the traceback is for the log
            traceback.print_exc()
            answer = {"failed": failure(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)  # libraries keep threads that can hang or crash at exit
