"""A model that lies in one folder as several ONNX graphs, run one after the other; the attribute `components` names them.

`components.json` beside them says what the whole takes and gives, in the order of the graph that they were cut from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.errors import ModelUnavailable
from runner.models.handle import ModelHandle

MANIFEST = "components.json"
ATTRIBUTE = "components"


@dataclass(frozen=True)
class Manifest:
    """What the components make together.

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
    """Returns what the components of a model make together.

    Raises:
        ModelUnavailable: the folder does not say it.
    """
    path = model.folder / MANIFEST
    if not path.is_file():
        raise ModelUnavailable("model-damaged", f"{path} is missing, which says how the graphs go together", "split it again")
    read: Mapping[str, Sequence[str]] = json.loads(path.read_text(encoding="utf-8"))
    return Manifest(component_names(model), tuple(read["inputs"]), tuple(read["outputs"]))


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

    def run(self, names: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of those names (all where None) for inputs by name."""
        known = dict(feed)
        for session in self._sessions:
            outputs = [one.name for one in session.get_outputs()]
            results = session.run(outputs, {one.name: known[one.name] for one in session.get_inputs()})
            known.update(zip(outputs, results, strict=True))
        return [known[name] for name in (names or [one.name for one in self._outputs])]
