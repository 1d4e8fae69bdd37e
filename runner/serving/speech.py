"""Transcriptions: what is said in an uploaded sound, whole, with times, as subtitles, or as a stream."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from runner.data.sound import read_sound
from runner.errors import RecipeError
from runner.models.sound_windows import SAMPLE_RATE
from runner.models.transcription import Passage
from runner.serving.models import Listener
from runner.serving.protocol import Refused, error_body

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")


@dataclass(frozen=True)
class Way:
    """How a sound is to be written down.

    Attributes:
        form: one of `FORMATS`.
        stream: tell passages as they are heard.
        language: code or English name of what is spoken; found out when None.
    """

    form: str = "json"
    stream: bool = False
    language: str | None = None


async def transcribe(listener: Listener, content: bytes, name: str, way: Way) -> Response:
    """Answers with what is said in a sound file.

    Args:
        listener: the model.
        content: bytes of the file: wav, flac, mp3 or ogg.
        name: what the client calls it.
        way: how.

    Raises:
        Refused: the form is not served, the model does not know the language, or the file is no sound.
    """
    form = way.form
    if form not in FORMATS:
        raise Refused(400, f"response_format is one of {', '.join(FORMATS)}, not '{form}'", "bad_format", "response_format")
    language = _language(listener, way.language) if way.language else None
    sound = _sound(content, name)
    passages = listener.each(listener.passages(sound, language))
    if way.stream:
        return StreamingResponse(_streamed(passages), media_type="text/event-stream")
    async with aclosing(passages) as heard:
        found = [passage async for passage in heard if passage.text]
    text = " ".join(passage.text for passage in found)
    if form == "json":
        return JSONResponse({"text": text})
    if form == "verbose_json":
        segments = [{"id": at, "start": one.start, "end": one.end, "text": one.text} for at, one in enumerate(found)]
        told = {"task": "transcribe", "duration": len(sound) / SAMPLE_RATE, "text": text, "segments": segments}
        return JSONResponse(told)
    return PlainTextResponse({"text": f"{text}\n", "srt": _subtitles(found, ","), "vtt": _vtt(found)}[form])


def _language(listener: Listener, name: str) -> str:
    code = listener.language(name)
    if code is None:
        known = ", ".join(listener.languages)
        told = f"'{listener.name}' does not know the language {name[:40]!r}; it knows {known}"
        raise Refused(400, told, "unknown_language", "language")
    return code


def _sound(content: bytes, name: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="recipe-serve-") as folder:
        path = Path(folder) / f"sound{Path(name).suffix or '.wav'}"
        path.write_bytes(content)
        try:
            return read_sound(path)
        except RecipeError as error:
            cause = error.problems[0].cause.replace(str(path), name)
            raise Refused(400, f"'{name}' is no sound that can be read: {cause}", "bad_sound", "file") from None


async def _streamed(passages: AsyncGenerator[Passage, None]) -> AsyncIterator[str]:
    """The events `transcript.text.delta`, one a passage, and `transcript.text.done`."""
    texts: list[str] = []
    try:
        async with aclosing(passages) as heard:
            async for passage in heard:
                if passage.text:
                    delta = f" {passage.text}" if texts else passage.text
                    texts.append(passage.text)
                    yield f"data: {json.dumps({'type': 'transcript.text.delta', 'delta': delta}, ensure_ascii=False)}\n\n"
    except RecipeError as error:
        yield f"data: {json.dumps(error_body(500, str(error), 'transcription_failed'))}\n\n"
    else:
        done = {"type": "transcript.text.done", "text": " ".join(texts)}
        yield f"data: {json.dumps(done, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _vtt(passages: Sequence[Passage]) -> str:
    return f"WEBVTT\n\n{_subtitles(passages, '.')}"


def _subtitles(passages: Sequence[Passage], point: str) -> str:
    """Numbered passages with their times, as SubRip has them (with a comma) and WebVTT (with a point)."""
    blocks = (
        f"{at}\n{_clock(one.start, point)} --> {_clock(one.end, point)}\n{one.text}\n" for at, one in enumerate(passages, 1)
    )
    return "\n".join(blocks)


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{point}{whole % 1000:03}"
