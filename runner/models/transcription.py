"""Speech to text with onnxruntime-genai: one loaded Whisper model. Imports no torch.

Sounds of any length are heard in windows that end where nobody speaks. In each the likeliest token is taken, without those that
the model's generation_config.json suppresses. A model that falls into repeating itself gets the window again in halves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import RunFailed
from runner.models.generation import genai_config, import_genai, threads_overlay
from runner.models.inputs import read_facts
from runner.models.repetition import loops, said_once
from runner.models.sound_windows import SAMPLE_RATE, is_silent, quietest, wav_bytes, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from runner.models.sound_windows import Samples

START, NO_TIMESTAMPS, NO_SPEECH = "<|startoftranscript|>", "<|notimestamps|>", ("<|nospeech|>", "<|nocaptions|>")
_ENGLISH = "en"
_TIMESTAMPS = 1501  # tokens of 0.00 to 30.00 s; they are the last of Whisper's own
_ENGLISH_ONLY_END = 50256  # number of the last token of Whisper's models for English; in the others it is one higher

# Limits of openai/whisper (transcribe.py): a window without speech is likely so at its start, and its words are unsure.
_NO_SPEECH_PROBABILITY = 0.6
_UNSURE = -1.0  # mean log-probability of a token

_SHORTEST_HALVED = 8 * SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Passage:
    """What is said in a part of a sound, which begins and ends at these seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class _Heard:
    """Tokens of a window, and whether the model was still repeating itself when it was stopped."""

    tokens: list[int]
    loops: bool


def hears(folder: Path) -> bool:
    """Returns whether onnxruntime-genai's folder holds a model that transcribes speech."""
    return bool(read_facts(folder, "genai_config.json").get("model", {}).get("type") == "whisper")


class TranscriptionSession:
    """A Whisper folder of onnxruntime-genai, loaded once.

    Args:
        folder: holds genai_config.json, encoder, decoder and tokenizer.
        threads: threads of each of its sessions; None leaves them as the folder says.
        on_cpu: run on the CPU whatever provider the model was built for.

    Raises:
        RunFailed: the model does not load.
    """

    def __init__(self, folder: Path, threads: int | None, *, on_cpu: bool = False) -> None:
        self._library = import_genai()
        self._described = genai_config(folder)["model"]
        self._facts = read_facts(folder, "generation_config.json")
        try:
            config = self._library.Config(str(folder))
            if on_cpu:
                config.clear_providers()
            if threads is not None:
                config.overlay(json.dumps(threads_overlay({"model": self._described}, threads, on_cpu=on_cpu)))
            self._model = self._library.Model(config)
            self._processor = self._model.create_multimodal_processor()
            self._tokenizer = self._library.Tokenizer(self._model)
        except RuntimeError as error:
            raise RunFailed("model-does-not-load", f"onnxruntime-genai does not load {folder}: {error}") from error
        if not self._numbers(START):
            cause = f"the tokenizer in {folder} has no {START}: a fine-tune needs the tokenizer of the model it comes from"
            raise RunFailed("no-tokenizer", cause, "copy them into its folder and run again")

    def transcribe(self, samples: Samples, most: int | None = None, language: str | None = None) -> Iterator[Passage]:
        """Yields what is said, window by window; a multilingual model finds the language in the first that is not silent.

        Args:
            samples: mono at 16 kHz, fp32 [n], of any length.
            most: tokens of all passages together; those behind them are not heard. As many as are said by default.
            language: one of `languages`; found out, or as generation_config.json says, when None.

        Raises:
            RunFailed: the model stops with an error.
        """
        spoken = self._language_named(language) if language and self._languages else None
        at = 0
        for window in windows(samples):
            start, at = at, at + len(window)
            runs: list[list[int]] = []
            if not is_silent(window):
                generator = self._begin(window)
                spoken = self._language(generator) if spoken is None else spoken
                runs = self._runs(window, self._heard(generator, spoken, most), spoken, most)
            texts = (str(self._tokenizer.decode(run)).strip() for run in runs)
            yield Passage(start / SAMPLE_RATE, at / SAMPLE_RATE, " ".join(filter(None, texts)))
            if most is not None:
                most -= sum(map(len, runs))
                if most <= 0:
                    return

    def tokens(self, window: Samples, most: int) -> list[int]:
        """Returns up to `most` tokens that are heard in a window of at most 30 seconds.

        Raises:
            RunFailed: the model stops with an error.
        """
        generator = self._begin(window)
        return self._heard(generator, self._language(generator), most).tokens

    def _runs(self, window: Samples, heard: _Heard, language: int | None, most: int | None) -> list[list[int]]:
        """The tokens of a window; one that the model did not find its way out of is heard again in halves, a run each."""
        if not heard.loops:
            return [heard.tokens]
        if len(window) < _SHORTEST_HALVED:
            return [said_once(heard.tokens)]
        cut = quietest(window, len(window) // 3, 2 * len(window) // 3)
        runs: list[list[int]] = []
        for half in (window[:cut], window[cut:]):
            left = None if most is None else most - sum(map(len, runs))
            if not is_silent(half) and (left is None or left > 0):
                runs += self._runs(half, self._heard(self._begin(half), language, left), language, left)
        return runs

    def _heard(self, generator: Any, language: int | None, most: int | None = None) -> _Heard:
        """Decodes greedily until the end, the model's context, `most` tokens, or a loop.

        Args:
            generator: has read the sound and the first token.
            language: token of the language; None for a model that knows one.
            most: tokens, as many as there is room for by default.
        """
        prompt = [*([] if language is None else [language, self._task]), *self._numbers(NO_TIMESTAMPS)]
        room = int(self._described["context_length"]) - 1 - len(prompt)
        speechless, certainty = self._no_speech(generator), 0.0
        found: list[int] = []
        with _telling_why():
            generator.append_tokens(prompt)
            for at in range(min(room, most or room)):
                logits = self._logits(generator) + (self._barred if at else self._barred_at_first)
                token = int(logits.argmax())
                certainty += _log_probability(logits, token) if speechless else 0
                if token in self._ends:
                    break
                found.append(token)
                if loops(found):
                    return _Heard(found, loops=True)
                generator.append_tokens([token])
        said = not speechless or certainty / (len(found) + 1) > _UNSURE
        return _Heard(found if said else [], loops=False)

    def _begin(self, window: Samples) -> Any:
        """Returns a generator that has read the sound and the first token."""
        with _telling_why():
            parameters = self._library.GeneratorParams(self._model)
            parameters.set_search_options(do_sample=False, num_beams=1, max_length=int(self._described["context_length"]))
            generator = self._library.Generator(self._model, parameters)
            generator.set_inputs(self._processor([START], audios=self._library.Audios.open_bytes(wav_bytes(window))))
        return generator

    def _logits(self, generator: Any) -> NDArray[np.float32]:
        """The logits of the next token [vocabulary]."""
        import numpy as np

        with _telling_why():
            logits = np.asarray(generator.get_logits(), np.float32)
        last: NDArray[np.float32] = logits.reshape(-1, logits.shape[-1])[-1]
        return last

    def _no_speech(self, generator: Any) -> bool:
        """Whether the token for no speech is likely behind the first one."""
        import numpy as np

        logits, numbers = self._logits(generator), self._numbers(*NO_SPEECH)
        return bool(numbers) and _log_probability(logits, numbers[0]) > np.log(_NO_SPEECH_PROBABILITY)

    def _language(self, generator: Any) -> int | None:
        """The language that generation_config.json names, else the likeliest behind the first token; None without a choice."""
        if not self._languages:
            return None
        if told := self._facts.get("language"):
            return self._language_named(str(told))
        logits = self._logits(generator)
        return max(self._languages, key=lambda token: float(logits[token]))

    @cached_property
    def languages(self) -> Sequence[str]:
        """The codes of the languages that the model writes down, sorted."""
        if not self._languages:
            return (_ENGLISH,)
        if named := self._facts.get("lang_to_id"):
            return sorted(token.strip("<|>") for token in named)
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

        return sorted(code for code in LANGUAGES if set(self._numbers(f"<|{code}|>")) & set(self._languages))

    def language_code(self, name: str) -> str | None:
        """Returns which of `languages` has this token, code or English name, in capitals or not; None where none has."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = name.strip().strip("<|>").lower()
        code = TO_LANGUAGE_CODE.get(code, code)
        return code if code in self.languages else None

    def _language_named(self, name: str) -> int:
        """Returns the token of a language by its token, its code or its English name."""
        if code := self.language_code(name):
            return self._numbers(f"<|{code}|>")[0]
        raise RunFailed("unknown-language", f"generation_config.json: the model has no language '{name}'", "give its code")

    @property
    def _task(self) -> int:
        return self._numbers(f"<|{self._facts.get('task') or 'transcribe'}|>")[0]

    @cached_property
    def _languages(self) -> list[int]:
        """The tokens of the languages that the model tells apart; none for a model that knows one."""
        if named := self._facts.get("lang_to_id"):
            return [int(token) for token in named.values()]
        multilingual = self._facts.get("is_multilingual", _ENGLISH_ONLY_END not in self._ends)
        first, behind = self._numbers(START), self._numbers("<|translate|>")
        return list(range(first[0] + 1, behind[0])) if multilingual and first and behind else []

    @cached_property
    def _ends(self) -> frozenset[int]:
        told = self._described["eos_token_id"]
        return frozenset(told if isinstance(told, list) else [told])

    @cached_property
    def _barred(self) -> NDArray[np.float32]:
        """What is added to logits [vocabulary]: minus infinity on tokens that are no text or are not to be written."""
        first, last = self._numbers(START), self._numbers(NO_TIMESTAMPS)
        named = range(first[0], last[0] + 1) if last else ()
        times = range(last[0] + 1, last[0] + 1 + _TIMESTAMPS) if last else ()
        known = times if times and times.stop <= int(self._described["vocab_size"]) else ()
        return self._without([*named, *known, *(self._facts.get("suppress_tokens") or ())])

    @cached_property
    def _barred_at_first(self) -> NDArray[np.float32]:
        """The same for the first token."""
        return self._barred + self._without(self._facts.get("begin_suppress_tokens") or (), ends=True)

    def _without(self, tokens: Sequence[int], *, ends: bool = False) -> NDArray[np.float32]:
        import numpy as np

        added: NDArray[np.float32] = np.zeros(int(self._described["vocab_size"]), np.float32)
        added[[token for token in tokens if 0 <= token < len(added) and (ends or token not in self._ends)]] = -np.inf
        return added

    def _numbers(self, *names: str) -> list[int]:
        """Returns the tokens of these names, as far as the model has them."""
        found = (int(self._tokenizer.to_token_id(name)) for name in names)
        return [token for token in found if token >= 0]


@contextmanager
def _telling_why() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunFailed("transcription-failed", f"onnxruntime-genai stopped: {error}") from error


def _log_probability(logits: NDArray[np.float32], token: int) -> float:
    import numpy as np

    highest = logits.max()
    return float(logits[token] - highest - np.log(np.exp(logits - highest).sum()))
