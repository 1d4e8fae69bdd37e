"""`recipe try` for models that draw: a bar over the steps, and a picture in a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runner.errors import UsageError
from runner.models.diffusion import TOKENS

if TYPE_CHECKING:
    from runner.cli.try_tasks import Asked

F = TypeVar("F", bound=Callable[..., Any])
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn, and where it goes.

    Attributes:
        out: the file.
        seed: of the noise that it starts from, and of tokens that are drawn; 0 for the one and another each time for the other
            when None.
        steps: of the scheduler.
        guidance: how much the prompt counts; the model's usual value when None.
        negative_prompt: what the picture does not show.
        size: (width, height) in pixels; the model's own when None.
        scheduler: diffusers' name of another scheduler than the model's own.
    """

    out: Path = Path("picture.png")
    seed: int | None = None
    steps: int = 30
    guidance: float | None = None
    negative_prompt: str | None = None
    size: tuple[int, int] | None = None
    scheduler: str | None = None

    @classmethod
    def taken_from(cls, chosen: dict[str, Any]) -> Drawing:
        """Returns what the options say, and takes them out of `chosen`."""
        return cls(**{one.name: chosen.pop(one.name) for one in fields(cls)})


def _picture_file(_: click.Context, __: click.Parameter, value: Path) -> Path:
    path = value.expanduser()
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError("bad-picture", f"--out: '{value}' names no picture", f"end it in one of {', '.join(PICTURE_SUFFIXES)}")
    if not path.parent.is_dir() or path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(
            "bad-picture", f"--out: '{value}' cannot be written", "name a file in a folder that exists and is yours to write to"
        )
    return path


_OPTIONS = (
    click.option(
        "--out", type=click.Path(path_type=Path), callback=_picture_file, default="picture.png", show_default=True,
        help="File of the picture that is drawn.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), show_default="0; text: another each time", help="Of what is drawn.",
    ),
    click.option("--steps", type=click.IntRange(1, 1000), default=30, show_default=True, help="Steps that draw a picture."),
    click.option("--guidance", type=click.FloatRange(0, 100), help="How much the prompt counts; 7.5 by default, 5 for XL."),
    click.option("--negative", "negative_prompt", metavar="TEXT", help="What the picture must not show."),
    click.option("--size", type=(int, int), metavar="WIDTH HEIGHT", help="Of a picture, in pixels; the model's by default."),
    click.option("--scheduler", metavar="NAME", help="diffusers' name, such as EulerAncestral; the model's by default."),
)  # fmt: skip


def drawing_options(command: F) -> F:
    """Adds the options of models that draw, which `Drawing.taken_from` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def draw(asked: Asked) -> None:
    """Draws the picture that is asked for and writes its file.

    Raises:
        UsageError: several prompts, or a size that the model cannot draw.
        PackageMissing: diffusers is not installed.
    """
    from rich.console import Console

    from runner.cli.run_progress import live_bars
    from runner.models.diffusion_pipeline import DrawingPipeline, Wanted

    if len(asked.inputs) > 1:
        raise UsageError("one-prompt", "one picture is drawn at a time", "put the prompt in quotes")
    drawing, prompt = asked.drawing, asked.inputs[0]
    width, height = drawing.size or (None, None)
    wanted = Wanted(
        prompt, drawing.negative_prompt, drawing.steps, drawing.guidance, drawing.seed or 0, height, width, drawing.scheduler
    )
    pipeline = DrawingPipeline(asked.model, asked.threads, asked.provider)
    for text in (prompt, drawing.negative_prompt or ""):
        if rest := pipeline.left_out(text):
            click.secho(f"note: the model reads {TOKENS - 2} tokens; left out is '{rest}'", fg="yellow", err=True)
    times = [time.perf_counter()]
    with live_bars(Console(stderr=True)) as bars:
        task = bars.add_task("drawing", total=drawing.steps, doing="reading the prompt")

        def step_done(done: int, count: int) -> None:
            times.append(time.perf_counter())
            bars.update(task, completed=done, total=count, doing="decoding" if done == count else "")

        picture = pipeline.draw(wanted, step_done=step_done)
    times.append(time.perf_counter())
    _write(picture, drawing.out)
    _tell(asked, picture.shape, times)


def _write(picture: Any, path: Path) -> None:
    import numpy as np
    from PIL import Image

    try:
        Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(path)
    except OSError as error:
        raise UsageError("bad-picture", f"--out: '{path}' cannot be written: {error.strerror or error}") from error


def _tell(asked: Asked, shape: Sequence[int], times: Sequence[float]) -> None:
    """Tells where the picture is and how long it took.

    Args:
        asked: what was asked.
        shape: height and width first.
        times: start, the end of each step, end; the first step also loads the model.
    """
    drawing, seconds = asked.drawing, times[-1] - times[0]
    a_step = (times[-2] - times[1]) / (len(times) - 3) if len(times) > 3 else None
    height, width = shape[:2]
    if asked.as_json:
        told = {"file": str(drawing.out), "width": width, "height": height, "steps": drawing.steps, "seed": drawing.seed or 0,
                "seconds": seconds, "seconds_a_step": a_step, "prompt": asked.inputs[0]}  # fmt: skip
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    click.echo(str(drawing.out))
    rate = f", {a_step:.2f} s a step" if a_step is not None else ""
    line = (
        f"{width} x {height}, {drawing.steps} steps, seed {drawing.seed or 0}: {seconds:.1f} s{rate}, {asked.threads} threads"
    )
    click.secho(line, dim=True, err=True)
