"""Speech to text with onnxruntime-genai: one loaded Whisper model. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.models.generation import genai_config, import_genai, threads_overlay
from runner.models.inputs import read_facts

if TYPE_CHECKING:
    import numpy as np

START, TRANSCRIBE, NO_TIMESTAMPS = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"


def hears(folder: Path) -> bool:
    """Returns whether onnxruntime-genai's folder holds a model that transcribes speech."""
    return bool(read_facts(folder, "genai_config.json").get("model", {}).get("type") == "whisper")


class TranscriptionSession:
    """A Whisper folder of onnxruntime-genai, loaded once.

    Args:
        folder: holds genai_config.json, encoder, decoder and tokenizer.
        threads: threads of each of its sessions.
        on_cpu: run on the CPU whatever provider the model was built for.

    Raises:
        RunFailed: the model does not load.
    """

    def __init__(self, folder: Path, threads: int, *, on_cpu: bool = False) -> None:
        self._library = import_genai()
        self._described = genai_config(folder)
        try:
            config = self._library.Config(str(folder))
            if on_cpu:
                config.clear_providers()
            config.overlay(json.dumps(threads_overlay(self._described, threads)))
            self._model = self._library.Model(config)
            self._processor = self._model.create_multimodal_processor()
            self._tokenizer = self._library.Tokenizer(self._model)
        except RuntimeError as error:
            raise RunFailed("model-does-not-load", f"onnxruntime-genai does not load {folder}: {error}") from error
        self._languages = _languages(folder)

    @cached_property
    def _behind_start(self) -> list[int]:
        """The tokens behind start and language."""
        names = (TRANSCRIBE, NO_TIMESTAMPS) if self._languages else (NO_TIMESTAMPS,)
        found = (int(self._tokenizer.to_token_id(name)) for name in names)
        return [token for token in found if token >= 0]

    def transcribe(self, wav: bytes) -> Iterator[str]:
        """Yields the text of a wav file of at most 30 seconds, piece by piece; a multilingual model finds the language itself.

        Args:
            wav: a wav file's bytes, mono, 16 kHz.

        Raises:
            RunFailed: the model stops with an error.
        """
        stream = self._processor.create_stream()
        try:
            parameters = self._library.GeneratorParams(self._model)
            parameters.set_search_options(
                do_sample=False, num_beams=1, max_length=int(self._described["model"]["context_length"])
            )
            generator = self._library.Generator(self._model, parameters)
            generator.set_inputs(self._processor([START], audios=self._library.Audios.open_bytes(wav)))
            generator.append_tokens([*self._language(generator), *self._behind_start])
            while not generator.is_done():
                generator.generate_next_token()
                yield stream.decode(int(generator.get_next_tokens()[0]))
        except RuntimeError as error:
            raise RunFailed("transcription-failed", f"onnxruntime-genai stopped: {error}") from error

    def _language(self, generator: Any) -> list[int]:
        """The likeliest language behind the first token; none for a model that knows one language."""
        if not self._languages:
            return []
        import numpy as np

        logits: np.ndarray[Any, Any] = np.asarray(generator.get_logits(), np.float32).reshape(-1)
        return [max(self._languages, key=lambda token: float(logits[token]))]


def _languages(folder: Path) -> list[int]:
    """Returns the tokens of the languages that the model knows, from its generation_config.json."""
    named = read_facts(folder, "generation_config.json").get("lang_to_id") or {}
    return [int(token) for token in named.values()]
