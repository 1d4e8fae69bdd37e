"""What the parent hands to its worker: a plan as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.engine.places import Places
from runner.engine.plan import Plan, Step
from runner.models.handle import ModelHandle
from runner.recipe.config import RunConfig
from runner.targets.target import TARGETS, Target


@dataclass(frozen=True)
class Job:
    """A plan without what only the parent needs. The attributes are those of `Plan` and `Request`."""

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

    @classmethod
    def of_plan(cls, plan: Plan, log: Path) -> Job:
        """Returns the job of a plan whose source is here."""
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
        )

    def to_line(self) -> str:
        """Returns the job as one line of JSON."""
        data: dict[str, Any] = {
            **{
                key: getattr(self, key)
                for key in ("name", "threads", "evaluation", "structure", "smoke", "no_cache", "scripts_allowed")
            },
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
