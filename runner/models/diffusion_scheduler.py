"""Schedulers of pipelines that draw, from diffusers: the one of a folder, or another one that its configuration suits.

Both diffusers' pipeline and ours take them from here or treat them alike, so that the same seed gives the same picture.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import ModelUnavailable, PackageMissing, Problem, UsageError, did_you_mean
from runner.models.checkpoint import read_json

if TYPE_CHECKING:
    import torch

# Work with the latents of these pipelines and are not among those that diffusers calls compatible.
_DISTILLED = ("LCMScheduler", "TCDScheduler")
_OF_OTHER_MODELS = ("EDMEulerScheduler",)  # expects a UNet that is scaled otherwise
# What diffusers' pipeline of this kind sets, whatever an old configuration says: latents are not clipped to [-1, 1].
_SET: dict[str, dict[str, Any]] = {"sd": {"steps_offset": 1, "clip_sample": False}, "sdxl": {}}


def load_scheduler(folder: Path, variant: str, name: str | None = None) -> Any:
    """Returns the scheduler of a pipeline's folder, or another one with its noise schedule.

    Args:
        folder: of the pipeline.
        variant: kind of the pipeline.
        name: class of diffusers, with or without the words Discrete and Scheduler; the folder's own when None.

    Raises:
        ModelUnavailable: the folder names no scheduler of diffusers that such a pipeline can use.
        UsageError: `name` is none.
        PackageMissing: it needs a package that is not installed.
    """
    import diffusers

    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    named = str(config.get("_class_name"))
    kind = getattr(diffusers, named, None)
    if kind is None or not hasattr(kind, "scale_model_input"):
        raise ModelUnavailable(
            "unknown-scheduler", f"{path}: diffusers has no scheduler '{named}' that draws with this kind of model"
        )
    given = {key: value for key, value in _SET[variant].items() if key in _parameters(kind)}
    own = _made(kind, {**config, **given})
    return own if name is None else other_scheduler(own, name)


def other_scheduler(own: Any, name: str) -> Any:
    """Returns a scheduler by name, with the noise schedule of another one.

    Raises:
        UsageError: there is none of that name, or it cannot take the place of the other.
        PackageMissing: it needs a package that is not installed.
    """
    import diffusers

    classes = {one.__name__: one for one in (type(own), *own.compatibles) if one.__name__ not in _OF_OTHER_MODELS}
    classes |= {one: getattr(diffusers, one) for one in _DISTILLED}
    known = {_key(one): one for one in sorted(classes)}
    if _key(name) not in known:
        words = [re.sub("Scheduler|Discrete", "", one) for one in known.values()]
        raise UsageError("unknown-scheduler", f"there is no scheduler '{name}' for this model", did_you_mean(name, words))
    kind = classes[known[_key(name)]]
    config = dict(own.config)
    if "clip_sample" in _parameters(kind):
        config.setdefault("clip_sample", False)
    return _made(kind, config)


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Returns what diffusers' pipelines hand to each step of a scheduler: the source of its noise, and no noise for DDIM."""
    options = {"generator": generator, "eta": 0.0}
    return {key: value for key, value in options.items() if key in inspect.signature(scheduler.step).parameters}


def set_steps(scheduler: Any, steps: int) -> None:
    """Lays out the steps of a picture.

    Raises:
        UsageError: the scheduler does not go in so many steps.
    """
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError) as error:
        name = type(scheduler).__name__
        raise UsageError(
            "bad-steps", f"{name} does not draw in {steps} steps: {_first_line(error)}", "take another --steps"
        ) from error


def _made(kind: Any, config: dict[str, Any]) -> Any:
    try:
        return kind.from_config(config)
    except ImportError as error:
        raise PackageMissing(Problem("package-missing", _first_line(error))) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _parameters(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)


def _key(name: str) -> str:
    """Returns a name without what people leave out: euler ancestral is EulerAncestralDiscreteScheduler."""
    return re.sub(r"[^a-z0-9]|scheduler|discrete", "", name.lower())
