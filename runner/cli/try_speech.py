"""`recipe try` for speech models: prints what is said in sound files."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from runner.cli.run_progress import live_bars

if TYPE_CHECKING:
    from runner.cli.try_tasks import Asked
    from runner.models.sound_windows import Samples
    from runner.models.transcription import Passage, TranscriptionSession


def transcribe(asked: Asked) -> None:
    """Prints the text of each sound file as it is recognised, in passages of at most 30 seconds that end in a pause.

    Raises:
        DataUnavailable: a file is no sound file.
        RunFailed: the model does not load or run.
    """
    from runner.data.sound import read_sound
    from runner.models.sound_windows import SAMPLE_RATE
    from runner.models.transcription import TranscriptionSession

    sounds = [read_sound(Path(given).expanduser()) for given in asked.inputs]
    session = TranscriptionSession(asked.model.folder, asked.threads, on_cpu=asked.provider == "CPUExecutionProvider")
    told = []
    for given, sound in zip(asked.inputs, sounds, strict=True):
        if len(sounds) > 1 and not asked.as_json:
            click.secho(given, bold=True)
        started = time.perf_counter()
        passages = _passages(session, sound, Path(given).name, asked)
        seconds, length = time.perf_counter() - started, len(sound) / SAMPLE_RATE
        text = " ".join(passage.text for passage in passages)
        spoken = [asdict(passage) for passage in passages]
        told.append({"input": given, "text": text, "passages": spoken, "sound_s": length, "seconds": seconds})
        if not passages:
            click.secho("nobody speaks", dim=True, err=True)
        if not asked.as_json:
            speed = f"{length:.1f} s of sound in {seconds:.1f} s ({length / seconds:.1f}x real time), {asked.threads} threads"
            click.secho(speed, dim=True, err=True)
    if asked.as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))


def _passages(session: TranscriptionSession, sound: Samples, name: str, asked: Asked) -> list[Passage]:
    """Returns the passages with words in them, each printed at once unless JSON is asked for.

    A bar tells how far it is where the text itself does not: it goes into a file, or is told at the end.
    """
    from runner.models.sound_windows import SAMPLE_RATE

    quiet = asked.as_json
    out = sys.stdout  # while a bar stands, rich sends what is printed to the bar's stream
    console = Console(stderr=True, quiet=out.isatty() and not quiet)
    found = []
    with live_bars(console) as bars:
        bar = bars.add_task(name, total=int(len(sound) / SAMPLE_RATE), doing="seconds")
        for passage in session.transcribe(sound, asked.max_new_tokens):
            bars.update(bar, completed=int(passage.end))
            if not passage.text:
                continue
            found.append(passage)
            if not quiet:
                click.echo(passage.text, file=out)
                out.flush()
    return found
