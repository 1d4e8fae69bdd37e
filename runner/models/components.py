"""A model that lies in one folder as several ONNX graphs; the attribute `components` names their files.

Two forms share this. A chain is one graph cut into pieces that run one after the other. A pipeline is several models, each in a
folder of its own, which code around them runs together: its handle has no `file`, and the attribute `parts` holds what is known
of each. `components.json` beside them says what goes in and out: of the whole for a chain, of each model for a pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.errors import ModelUnavailable
from runner.models.handle import ModelHandle

MANIFEST = "components.json"
ATTRIBUTE = "components"
PARTS = "parts"


@dataclass(frozen=True)
class Manifest:
    """What the pieces of a chain make together.

    Attributes:
        components: file names in the order in which they run.
        inputs: names of the inputs of the whole.
        outputs: names of its outputs.
    """

    components: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Writes it into the folder of the graphs."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def component_names(model: ModelHandle) -> tuple[str, ...]:
    """Returns the file names of the graphs of an `onnx` model that lies in several; empty where it is one."""
    return tuple(model.attributes.get(ATTRIBUTE) or ()) if model.kind == "onnx" else ()


def read_manifest(model: ModelHandle) -> Manifest:
    """Returns what the pieces of a chain make together.

    Raises:
        ModelUnavailable: the folder does not say it, or holds a pipeline, which no one session runs.
    """
    path = model.folder / MANIFEST
    if is_pipeline(model):
        raise ModelUnavailable(
            "several-models", f"{model.folder} holds a pipeline ({', '.join(parts_of(model))}), which is not run as one graph"
        )
    if not path.is_file():
        raise ModelUnavailable("model-damaged", f"{path} is missing, which says how the graphs go together", "split it again")
    read: Mapping[str, Sequence[str]] = json.loads(path.read_text(encoding="utf-8"))
    return Manifest(component_names(model), tuple(read["inputs"]), tuple(read["outputs"]))


def is_pipeline(model: ModelHandle) -> bool:
    """Says whether an `onnx` model is several, each in a folder of its own."""
    return model.kind == "onnx" and PARTS in model.attributes


def parts_of(model: ModelHandle) -> dict[str, ModelHandle]:
    """Returns the models of a pipeline by their names, in the order in which they run; each lies in the folder of that name."""
    parts = model.attributes[PARTS]
    names = dict.fromkeys(file.partition("/")[0] for file in model.attributes[ATTRIBUTE])
    return {
        name: ModelHandle("onnx", model.folder / name, parts[name]["file"], model.task, parts[name]["attributes"])
        for name in names
    }


def pipeline_of(folder: Path, parts: Iterable[tuple[str, ModelHandle]], task: str | None, **attributes: Any) -> ModelHandle:
    """Returns the handle of a pipeline.

    Args:
        folder: holds one folder a model.
        parts: (name, model) of each, in the order in which they run.
        task: of the whole.
        attributes: of the whole.
    """
    named = dict(parts)
    facts = {name: {"file": part.file, "attributes": part.attributes} for name, part in named.items()}
    files = [f"{name}/{file}" for name, part in named.items() for file in (component_names(part) or (part.file,))]
    return ModelHandle("onnx", folder, None, task, {**attributes, ATTRIBUTE: files, PARTS: facts})


class ChainedSession:
    """Sessions run one after the other, each on the inputs of the whole and the outputs of those before; looks like a session.

    Args:
        sessions: one a component, in their order.
        manifest: what they make together.
    """

    def __init__(self, sessions: Sequence[Any], manifest: Manifest) -> None:
        self._sessions = list(sessions)
        described_inputs = {one.name: one for session in sessions for one in session.get_inputs()}
        described_outputs = {one.name: one for session in sessions for one in session.get_outputs()}
        self._inputs = [described_inputs[name] for name in manifest.inputs if name in described_inputs]
        self._outputs = [described_outputs[name] for name in manifest.outputs]

    def get_inputs(self) -> list[Any]:
        """Returns the inputs of the whole."""
        return self._inputs

    def get_outputs(self) -> list[Any]:
        """Returns the outputs of the whole."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Returns the execution providers of the first component."""
        providers: list[str] = self._sessions[0].get_providers()
        return providers

    def end_profiling(self) -> list[str]:
        """Lets every session write its profile and returns the files."""
        return [session.end_profiling() for session in self._sessions]

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of those names (all where None) for inputs by name."""
        known = dict(feed)
        for session in self._sessions:
            outputs = [one.name for one in session.get_outputs()]
            results = session.run(outputs, {one.name: known[one.name] for one in session.get_inputs()})
            known.update(zip(outputs, results, strict=True))
        return [known[name] for name in (names or [one.name for one in self._outputs])]
