"""Where a model is and what it is. A handle is small, immutable and travels between processes as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["hf", "pytorch", "gguf", "ct2", "diffusers", "onnx", "genai"]


@dataclass(frozen=True)
class ModelHandle:
    """A model on disk.

    Attributes:
        kind: ``hf`` a transformers folder (config.json, safetensors, tokenizer); ``pytorch`` a module that a script
            loads; ``gguf`` a folder with one .gguf file; ``ct2`` a folder with CTranslate2's model.bin of a Whisper model;
            ``diffusers`` a folder with a model_index.json and one folder a component; ``onnx`` a folder with an ONNX graph
            (tokenizer and config.json beside it when the model had them), or with several, see `runner.models.components`;
            ``genai`` a folder that onnxruntime-genai loads.
        folder: the folder that holds everything.
        file: name of the ONNX graph, .gguf file or model.bin inside the folder; None for ``hf``, ``pytorch``, ``diffusers``
            and pipelines.
        task: Hugging Face task, such as ``text-generation``; None when nobody said.
        attributes: facts that later steps, evaluation and the receipt need: `architecture`, `model_type`, `hidden_size`,
            `num_attention_heads`, loader options, tuned session options.
        files: names, relative to the folder with forward slashes, of the files that are the model's, where the folder may
            hold others as well; None where everything in it is.
    """

    kind: Kind
    folder: Path
    file: str | None = None
    task: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] | None = None

    @property
    def path(self) -> Path:
        """Returns the ONNX or .gguf file, or the folder where the model is not one file."""
        return self.folder / self.file if self.file else self.folder

    def with_attributes(self, **changes: Any) -> ModelHandle:
        """Returns a copy with attributes set."""
        return replace(self, attributes={**self.attributes, **changes})

    def to_json(self) -> dict[str, Any]:
        """Returns the handle as plain data, the folder as text."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path | None = None) -> ModelHandle:
        """Returns the handle that `to_json` gave, at another folder when one is given."""
        files = data.get("files")
        return cls(**{**data, "folder": folder or Path(data["folder"]), "files": None if files is None else tuple(files)})
