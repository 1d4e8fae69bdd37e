"""`recipe try` for speech models: prints what is said in wav files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from runner.cli.try_tasks import Asked


def transcribe(asked: Asked) -> None:
    """Prints the text of each wav file as it is recognised, in windows of 30 seconds.

    Raises:
        DataUnavailable: a file is no wav file.
        RunFailed: the model does not load or run.
    """
    from runner.data.sound import SAMPLE_RATE, read_sound, wav_bytes, windows
    from runner.models.transcription import TranscriptionSession

    sounds = [read_sound(Path(given).expanduser()) for given in asked.inputs]
    session = TranscriptionSession(asked.model.folder, asked.threads, on_cpu=asked.provider == "CPUExecutionProvider")
    told = []
    for given, sound in zip(asked.inputs, sounds, strict=True):
        if len(sounds) > 1 and not asked.as_json:
            click.secho(given, bold=True)
        started = time.perf_counter()
        texts = [_spoken(session.transcribe(wav_bytes(window)), quiet=asked.as_json) for window in windows(sound)]
        seconds, length = time.perf_counter() - started, len(sound) / SAMPLE_RATE
        told.append({"input": given, "text": " ".join(texts), "sound_s": length, "seconds": seconds})
        if not asked.as_json:
            speed = f"{length:.1f} s of sound in {seconds:.1f} s ({length / seconds:.1f}x real time), {asked.threads} threads"
            click.secho(speed, dim=True, err=True)
    if asked.as_json:
        click.echo(json.dumps(told, ensure_ascii=False, indent=2))


def _spoken(pieces: Iterable[str], *, quiet: bool) -> str:
    text = ""
    for piece in pieces:
        text += piece
        if not quiet:
            click.echo(piece.lstrip() if text == piece else piece, nl=False)
    if not quiet:
        click.echo()
    return text.strip()
