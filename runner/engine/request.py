"""What somebody asked to run, and what follows from the asking alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import Place
from runner.passes import table
from runner.recipe.config import RunConfig
from runner.recipe.load import LoadedConfig
from runner.targets.target import require, target_of

if TYPE_CHECKING:
    from runner.recipe.info import Info

KINDS = {"HfModel": "hf", "PyTorchModel": "pytorch", "ONNXModel": "onnx", "DiffusersModel": "diffusers"}


@dataclass(frozen=True)
class Request:
    """What somebody asked to run.

    Attributes:
        loaded: the checked configuration.
        info: the recipe's info.yml, where it has one.
        variant: name of the variant, where it has one.
        inside_catalogue: the folder belongs to the catalogue, whose scripts are trusted.
        smoke: the tiny twin and synthetic data in place of the real ones.
        offline: no network.
        trust: run code and load pickles from outside the catalogue.
        no_cache: make every step again.
        no_artifacts: keep the finished model only, not what the steps before the last one leave.
        threads: threads to compute with; one a usable core when None.
        output_dir: overrides the configuration's.
    """

    loaded: LoadedConfig
    info: Info | None = None
    variant: str | None = None
    inside_catalogue: bool = False
    smoke: bool = False
    offline: bool = False
    trust: bool = False
    no_cache: bool = False
    no_artifacts: bool = False
    threads: int | None = None
    output_dir: Path | None = None

    @property
    def config(self) -> RunConfig:
        """Returns the typed configuration."""
        return self.loaded.config

    @property
    def name(self) -> str:
        """Returns how people call it: id and variant; else the file's name, or the folder's."""
        if self.info is None:
            file = self.loaded.files[0]
            return self.loaded.folder.name if file.name == "olive_config.json" else file.stem
        return f"{self.info.name}/{self.variant}" if self.variant else self.info.name

    def place(self, *path: str | int) -> Place | None:
        """Returns where a value of the configuration stands, else the nearest section around it; None where nobody wrote it."""
        return self.loaded.tree.deepest(path).origin.place


def require_device(request: Request) -> None:
    """Makes sure that what a request makes can also be run here, as a smoke run need not be able to.

    Raises:
        TargetUnavailable: its target cannot be used here; says what mends it.
        InvalidRecipe: the configuration names no target of ours.
    """
    config = request.config
    require(target_of(config.system(config.target), request.place("target")), genai=makes_genai(config))


def makes_genai(config: RunConfig) -> bool:
    """Says whether onnxruntime-genai has a part in a run: one of its passes makes a folder for it."""
    return any(table.get(step.type).gives == "genai" for step in config.passes.values())


def kind_made(config: RunConfig) -> str:
    """Returns the kind of model that a run leaves, see `ModelHandle`."""
    given = (table.get(step.type).gives for step in reversed(config.passes.values()))
    return next(filter(None, given), KINDS[config.input_model.type])


def output_of(request: Request) -> Path:
    """Returns where the result goes. A smoke run never takes the place of a real model."""
    if request.output_dir is not None:
        return request.output_dir.expanduser().absolute()
    named = request.config.output_dir or f"models/{request.name.replace('/', '-')}"
    return Path(f"{named}-smoke" if request.smoke else named).expanduser().absolute()
