"""A loaded speech model that turns sound into text, by PyTorch or onnxruntime-genai."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from runner.data.sound import SAMPLE_RATE, wav_bytes, windows
from runner.models.handle import ModelHandle
from runner.models.transcription import TranscriptionSession

if TYPE_CHECKING:
    from runner.data.sound import Samples


class Transcriber(Protocol):
    """A loaded speech model."""

    def text(self, samples: Samples) -> str:
        """Returns what is said in mono samples at 16 kHz, decoded greedily in windows of 30 seconds."""
        ...


def open_transcriber(model: ModelHandle, threads: int, provider: str = "CPUExecutionProvider") -> Transcriber:
    """Loads a Whisper model of kind `hf` or `genai`.

    Raises:
        RecipeError: it does not load.
    """
    if model.kind == "genai":
        return GenaiTranscriber(model, threads, on_cpu=provider == "CPUExecutionProvider")
    return TorchTranscriber(model, threads, "cuda" if provider == "CUDAExecutionProvider" else "cpu")


class TorchTranscriber:
    """The source model through transformers' own `generate`, fp32."""

    def __init__(self, model: ModelHandle, threads: int, device: str = "cpu") -> None:
        import torch
        from transformers import AutoProcessor

        from runner.models.torch_source import load_torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = device
        self._processor = AutoProcessor.from_pretrained(model.folder, local_files_only=True)
        self._module: Any = load_torch(model).to(device)
        multilingual = getattr(self._module.generation_config, "is_multilingual", False)
        self._asked = {"task": "transcribe"} if multilingual else {}  # unasked, it may end after a word or never

    def text(self, samples: Samples) -> str:
        """See `Transcriber.text`."""
        return " ".join(self._window(window) for window in windows(samples))

    def _window(self, samples: Samples) -> str:
        features = self._processor.feature_extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with self._torch.inference_mode():
            ids = self._module.generate(features.to(self._device), do_sample=False, num_beams=1, **self._asked)
        return str(self._processor.tokenizer.decode(ids[0], skip_special_tokens=True)).strip()


class GenaiTranscriber:
    """A folder of onnxruntime-genai."""

    def __init__(self, model: ModelHandle, threads: int, *, on_cpu: bool) -> None:
        self._session = TranscriptionSession(model.folder, threads, on_cpu=on_cpu)

    def text(self, samples: Samples) -> str:
        """See `Transcriber.text`."""
        return " ".join("".join(self._session.transcribe(wav_bytes(window))).strip() for window in windows(samples))
