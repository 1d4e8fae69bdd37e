"""Models that are served: each is loaded once, and answers one request after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import to_thread

from runner.errors import RunFailed, UsageError
from runner.models.generation import GenerationSession, genai_config
from runner.models.handle import ModelHandle
from runner.models.transcription import Passage, TranscriptionSession, hears
from runner.serving.protocol import Refused

if TYPE_CHECKING:
    import numpy as np

    from runner.evaluation.text_embedding import Embedder

T = TypeVar("T")

CHAT, EMBEDDINGS, SPEECH = "chat and completions", "embeddings", "audio transcriptions"
SERVER_ENDS = "server-ends"
_EMBEDS = ("feature-extraction", "sentence-similarity")
_TEXTS_AT_ONCE = 16
_END = object()


@dataclass(frozen=True)
class Offer:
    """A model to be served.

    Attributes:
        name: what clients call it.
        handle: the model.
        provider: execution provider.
        threads: threads of its sessions.
    """

    name: str
    handle: ModelHandle
    provider: str
    threads: int


class Served:
    """A loaded model; requests wait for one another in the order in which they come.

    Attributes:
        name: what clients call it.
        does: what it is for, in words.
        folder: where it lies.
    """

    does = ""

    def __init__(self, offer: Offer) -> None:
        self.name = offer.name
        self.folder: Path = offer.handle.folder
        self._turn = asyncio.Lock()
        self._ends = False

    def end(self) -> None:
        """Ends the answer that is being made behind its current step, and those that wait for it."""
        self._ends = True

    def _go_on(self) -> None:
        if self._ends:
            raise RunFailed(SERVER_ENDS, "the server is being stopped", "ask again when it runs")

    async def each(self, steps: Iterator[T]) -> AsyncGenerator[T, None]:
        """Yields the steps of a computation, each made on a thread of its own, while no other request uses the model.

        Who closes it early (a client that is gone) ends the computation behind the current step.

        Raises:
            RunFailed: the server is being stopped.
        """
        async with self._turn:
            self._go_on()
            while (step := await to_thread.run_sync(next, steps, _END)) is not _END:
                yield step  # type: ignore[misc]
                self._go_on()

    async def alone(self, compute: Any, *arguments: Any) -> Any:
        """Returns what a function computes on a thread, while no other request uses the model.

        Raises:
            RunFailed: the server is being stopped.
        """
        async with self._turn:
            self._go_on()
            return await to_thread.run_sync(compute, *arguments)


class Writer(Served):
    """A language model of onnxruntime-genai.

    Attributes:
        session: the loaded model.
        vocabulary: number of tokens that its embedding has.
    """

    does = CHAT

    def __init__(self, offer: Offer) -> None:
        super().__init__(offer)
        on_cpu = offer.provider == "CPUExecutionProvider"
        self.session = GenerationSession(offer.handle.folder, offer.threads, on_cpu=on_cpu)
        self.vocabulary = int(genai_config(offer.handle.folder)["model"]["vocab_size"])


class TextEncoder(Served):
    """A model that turns texts into vectors."""

    does = EMBEDDINGS

    def __init__(self, offer: Offer) -> None:
        from runner.evaluation.text_embedding import Embedder

        super().__init__(offer)
        self._embedder: Embedder = Embedder(offer.handle, offer.threads, offer.provider)

    @property
    def vocabulary(self) -> int:
        """Returns the number of tokens that its tokenizer has."""
        return self._embedder.vocabulary

    def embed(self, inputs: Sequence[str | list[int]]) -> tuple[np.ndarray[Any, Any], int]:
        """Returns vectors of length 1, float32 [inputs, width], and the number of tokens that were read.

        Raises:
            Refused: the tokenizer finds no token in an input.
        """
        texts = [one if isinstance(one, str) else self._embedder.text_of(one) for one in inputs]
        counts = self._embedder.counts(texts)
        if 0 in counts:
            raise Refused(400, f"input[{counts.index(0)}] has no tokens that this model reads", "empty_input", "input")
        return self._embedder.embed(texts, _TEXTS_AT_ONCE), sum(counts)


class Listener(Served):
    """A model that writes down speech."""

    does = SPEECH

    def __init__(self, offer: Offer) -> None:
        super().__init__(offer)
        on_cpu = offer.provider == "CPUExecutionProvider"
        self._session = TranscriptionSession(offer.handle.folder, offer.threads, on_cpu=on_cpu)

    def language(self, name: str) -> str | None:
        """Returns the code of a language that the model knows by this code or English name; None where it knows none."""
        return self._session.language_code(name)

    @property
    def languages(self) -> Sequence[str]:
        """Returns the codes of the languages that the model writes down."""
        return self._session.languages

    def passages(self, sound: Any, language: str | None = None) -> Iterator[Passage]:
        """Yields what is said in a sound, mono at 16 kHz, fp32 [n], in the language of a code; found out when None."""
        return self._session.transcribe(sound, language=language)


def way_to_serve(offer: Offer) -> type[Served]:
    """Returns the class that loads a model and answers with it.

    Raises:
        UsageError: OpenAI's interface has no place for what it does, or it is not in the form that is served.
    """
    check_served(offer.name, offer.handle.kind, offer.handle.task, f"recipe optimize -m {offer.handle.folder}")
    if offer.handle.kind == "genai":
        return Listener if hears(offer.handle.folder) else Writer
    return TextEncoder


def check_served(name: str, kind: str, task: str | None, mended_by: str) -> None:
    """Makes sure that models of a kind for a task can be served.

    Args:
        name: what the model is called.
        kind: see `ModelHandle`.
        task: Hugging Face task.
        mended_by: the command that makes an ONNX model of a checkpoint.

    Raises:
        UsageError: OpenAI's interface has no place for what it does, or it is not in the form that is served.
    """
    plain = (task or "").removesuffix("-with-past")
    if kind == "genai" or plain in _EMBEDS:
        return
    if kind == "hf":
        raise UsageError(
            "not-onnx",
            f"{name} is a checkpoint in transformers' form, which is not served",
            f"make it an ONNX model first: {mended_by}",
        )
    raise UsageError(
        "cannot-serve",
        f"{name}: a model of kind '{kind}' for '{plain or 'no task'}' cannot be served",
        "served are language models and Whisper in onnxruntime-genai's form, and text encoders; 'recipe try' runs the others",
    )
