"""What the parent hands to its worker: a plan as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runner.data.batches import open_data
from runner.engine.places import Places
from runner.engine.plan import Plan, Step
from runner.errors import DataUnavailable
from runner.models.handle import ModelHandle
from runner.passes.declaration import Batches
from runner.recipe.config import DataConfig, RunConfig
from runner.targets.target import TARGETS, Target

_PLAIN = (
    "name",
    "threads",
    "evaluation",
    "structure",
    "smoke",
    "no_cache",
    "no_artifacts",
    "scripts_allowed",
    "memory",
    "offline",
    "unchecked",
)


@dataclass(frozen=True)
class Job:
    """A plan without what only the parent needs.

    Attributes:
        unchecked: steps whose result is not checked against the source, and why; the others are those of `Plan` and `Request`.
    """

    name: str
    source: ModelHandle
    steps: tuple[Step, ...]
    config: RunConfig
    folder: Path
    target: Target
    threads: int
    places: Places
    evaluation: str | None
    structure: str | None
    smoke: bool
    no_cache: bool
    scripts_allowed: bool
    log: Path
    memory: int | None = None
    offline: bool = False
    unchecked: Mapping[str, str] = field(default_factory=dict)
    no_artifacts: bool = False

    @classmethod
    def of_plan(cls, plan: Plan, log: Path, memory: int | None = None, unchecked: Mapping[str, str] | None = None) -> Job:
        """Returns the job of a plan whose source is here.

        Args:
            plan: what was decided.
            log: where the worker's output goes.
            memory: bytes that it may hold, with the processes that it starts; None for no limit.
            unchecked: see the attribute.
        """
        request = plan.request
        if plan.source.handle is None:
            raise ValueError("the source model has not been fetched")
        return cls(
            request.name,
            plan.source.handle,
            plan.steps,
            request.config,
            request.loaded.folder,
            plan.target,
            plan.threads,
            plan.places,
            plan.evaluation,
            plan.structure,
            request.smoke,
            request.no_cache,
            request.inside_catalogue or request.trust,
            log,
            memory,
            request.offline,
            unchecked or {},
            request.no_artifacts,
        )

    def open_data(self, model: ModelHandle, name: str | dict[str, Any]) -> Batches:
        """Returns the inputs that a data config makes for a model.

        Raises:
            DataUnavailable: there is no data config of that name, or what it names is not there.
        """
        config = self.config.data_config(name) if isinstance(name, str) else DataConfig.model_validate(name)
        if config is None:
            raise DataUnavailable(f"there is no data config '{name}'")
        return open_data(config, folder=self.folder, model=model, smoke=self.smoke, script_allowed=self.scripts_allowed)

    def to_line(self) -> str:
        """Returns the job as one line of JSON."""
        data: dict[str, Any] = {
            **{key: getattr(self, key) for key in _PLAIN},
            "source": self.source.to_json(),
            "steps": [asdict(step) for step in self.steps],
            "config": self.config.model_dump(mode="json"),
            "folder": str(self.folder),
            "target": self.target.name,
            "places": [str(self.places.root), str(self.places.models)],
            "log": str(self.log),
        }
        return json.dumps(data)

    @classmethod
    def parse(cls, line: str) -> Job:
        """Returns the job that `to_line` gave."""
        data = json.loads(line)
        root, models = data["places"]
        return cls(
            **{
                **data,
                "source": ModelHandle.from_json(data["source"]),
                "steps": tuple(Step(**step) for step in data["steps"]),
                "config": RunConfig.model_validate(data["config"]),
                "folder": Path(data["folder"]),
                "target": TARGETS[data["target"]],
                "places": Places(Path(root), Path(models)),
                "log": Path(data["log"]),
            }
        )


@dataclass(frozen=True)
class PartJob:
    """One component of a step, for a process of its own.

    Attributes:
        job: the run that it belongs to.
        step, pass_name: where the run is.
        component: its name.
        model: what the pass takes.
        options: those for this component, as JSON data.
        folder: has empty folders `output` and `scratch`.
        threads: threads to compute with.
    """

    job: Job
    step: str
    pass_name: str
    component: str
    model: ModelHandle
    options: dict[str, Any]
    folder: Path
    threads: int

    def to_line(self) -> str:
        """Returns it as one line of JSON."""
        told = {"job": self.job.to_line(), "model": self.model.to_json(), "folder": str(self.folder)}
        plain = {key: getattr(self, key) for key in ("step", "pass_name", "component", "options", "threads")}
        return json.dumps({**plain, **told})

    @classmethod
    def parse(cls, line: str) -> PartJob:
        """Returns what `to_line` gave."""
        data = json.loads(line)
        told = {"job": Job.parse(data["job"]), "model": ModelHandle.from_json(data["model"]), "folder": Path(data["folder"])}
        return cls(**{**data, **told})
