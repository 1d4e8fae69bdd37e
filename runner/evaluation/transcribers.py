"""A loaded speech model that turns sound into text, by PyTorch or onnxruntime-genai."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from runner.evaluation.torch_form import TorchForm
from runner.models.handle import ModelHandle
from runner.models.inputs import read_facts
from runner.models.sound_windows import SAMPLE_RATE, is_silent, windows
from runner.models.transcription import TranscriptionSession

if TYPE_CHECKING:
    from runner.models.sound_windows import Samples


class Transcriber(Protocol):
    """A loaded speech model."""

    def text(self, samples: Samples) -> str:
        """Returns what is said in mono samples at 16 kHz, decoded greedily in the windows of `models.sound_windows`."""
        ...


def open_transcriber(
    model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider", form: TorchForm | None = None
) -> Transcriber:
    """Loads a Whisper model of kind `hf` or `genai`; `form` says how PyTorch runs it, eager in fp32 when None.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "genai":
        return GenaiTranscriber(model, threads, on_cpu=provider == "CPUExecutionProvider")
    return TorchTranscriber(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu", form or TorchForm())


class TorchTranscriber:
    """The source model through transformers' own `generate`."""

    def __init__(self, model: ModelHandle, threads: int, device: str = "cpu", form: TorchForm | None = None) -> None:
        import torch

        from runner.models.torch_source import load_tokenizer, load_torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = device
        self._extractor = _feature_extractor(model)
        self._tokenizer = load_tokenizer(model)
        form = form or TorchForm()
        self._dtype = form.dtype()
        self._module: Any = load_torch(model, self._dtype).to(device)
        self._cache = {"cache_implementation": "static"} if form.compiled else {}
        told = self._module.generation_config
        self._multilingual = bool(getattr(told, "is_multilingual", False) and getattr(told, "lang_to_id", None))
        # unasked, it may end after a word or never
        self._told = {"task": getattr(told, "task", None) or "transcribe"} if self._multilingual else {}

    def text(self, samples: Samples) -> str:
        """See `Transcriber.text`."""
        features = [self._features(window) for window in windows(samples) if not is_silent(window)]
        if not features:
            return ""
        asked = dict(self._told)
        if self._multilingual and len(features) > 1:  # as for one window, the first that speaks decides
            asked["language"] = getattr(self._module.generation_config, "language", None) or self._language(features[0])
        return " ".join(filter(None, (self._window(one, asked) for one in features)))

    def _features(self, samples: Samples) -> Any:
        heard = self._extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return heard.input_features.to(self._device, self._dtype)

    def _language(self, features: Any) -> str:
        with self._torch.inference_mode():
            return str(self._tokenizer.decode(self._module.detect_language(features)))

    def _window(self, features: Any, asked: dict[str, str]) -> str:
        with self._torch.inference_mode():
            ids = self._module.generate(features, do_sample=False, num_beams=1, **asked, **self._cache)
        return str(self._tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


def _feature_extractor(model: ModelHandle) -> Any:
    """Returns what makes the encoder's input of sounds; Whisper's own where the folder of a fine-tune does not describe one."""
    from transformers import WhisperFeatureExtractor

    if any((model.folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return WhisperFeatureExtractor.from_pretrained(model.folder, local_files_only=True)
    return WhisperFeatureExtractor(feature_size=int(read_facts(model.folder).get("num_mel_bins") or 80))


class GenaiTranscriber:
    """A folder of onnxruntime-genai."""

    def __init__(self, model: ModelHandle, threads: int, *, on_cpu: bool) -> None:
        self._session = TranscriptionSession(model.folder, threads, on_cpu=on_cpu)

    def text(self, samples: Samples) -> str:
        """See `Transcriber.text`."""
        return " ".join(filter(None, (passage.text for passage in self._session.transcribe(samples))))
