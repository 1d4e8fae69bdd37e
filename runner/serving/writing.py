"""Chat completions and completions: text that a language model writes, whole or as a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from runner.errors import RecipeError
from runner.models.generation import GeneratedToken
from runner.serving.models import Writer
from runner.serving.protocol import ChatBody, CompletionBody, Refused, Sampling, error_body
from runner.serving.stops import StopTexts


@dataclass
class _Piece:
    """The next text of an answer; the last one says why it ends.

    Attributes:
        text: to be shown.
        tokens: tokens of the answer so far.
        end: ``stop`` or ``length``.
    """

    text: str
    tokens: int
    end: str | None = None


@dataclass(frozen=True)
class _Form:
    """How an answer is told: as a chat's next turn, or as a text."""

    chat: bool
    id: str
    made: int
    model: str

    @classmethod
    def of(cls, chat: bool, model: str) -> _Form:
        return cls(chat, f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", int(time.time()), model)

    def whole(self, text: str, end: str, usage: dict[str, int]) -> dict[str, Any]:
        """Returns the body of an answer in one piece."""
        told: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **told, "logprobs": None, "finish_reason": end}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage}

    def part(self, text: str, end: str | None, first: bool) -> dict[str, Any]:
        """Returns a piece of a streamed answer."""
        if self.chat:
            delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
            choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        else:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": end}
        return {**self._part_head(), "choices": [choice]}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """Returns the last piece of a streamed answer whose client asks for the number of tokens."""
        return {**self._part_head(), "choices": [], "usage": usage}

    def _part_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.made, "model": self.model}


async def chat(writer: Writer, body: ChatBody, request: Request) -> Response:
    """Answers a conversation.

    Raises:
        Refused: something is asked for that is not served, or the conversation is too long.
    """
    body.check()
    prompt = writer.session.prompt([message.plain() for message in body.messages])
    return await _answer(writer, body, prompt, body.most, _Form.of(True, writer.name), request)


async def complete(writer: Writer, body: CompletionBody, request: Request) -> Response:
    """Goes on with a text; the model's chat template plays no part.

    Raises:
        Refused: something is asked for that is not served, or the text is too long.
    """
    body.check()
    given = body.only_prompt(writer.vocabulary)
    prompt = writer.session.text_tokens(given) if isinstance(given, str) else given
    if not prompt:
        raise Refused(400, "the prompt is empty", "empty_prompt", "prompt")
    return await _answer(writer, body, prompt, body.max_tokens or 16, _Form.of(False, writer.name), request)


async def _answer(
    writer: Writer, body: Sampling, prompt: Sequence[int], most: int | None, form: _Form, request: Request
) -> Response:
    room = writer.session.context_length - len(prompt)
    if room < 1:
        raise Refused(
            400,
            f"the prompt has {len(prompt)} tokens, and the model has room for {writer.session.context_length} with its answer",
            "context_length_exceeded",
            "messages" if form.chat else "prompt",
        )
    allowed = min(most or room, room)
    tokens = writer.session.generate(prompt, allowed, **body.search())
    pieces = writer.each(_pieces(tokens, body.stops, allowed))
    if body.stream:
        told = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(_streamed(pieces, form, len(prompt), told), media_type="text/event-stream")
    text, last = "", _Piece("", 0, "stop")
    async with aclosing(pieces) as whole:
        async for piece in whole:
            text, last = text + piece.text, piece
            if await request.is_disconnected():
                break
    return JSONResponse(form.whole(text, last.end or "stop", _usage(len(prompt), last.tokens)))


def _pieces(tokens: Iterator[GeneratedToken], stops: Sequence[str], allowed: int) -> Iterator[_Piece]:
    """Yields the answer token by token; its last piece, which may have no text, says why it ends."""
    watch = StopTexts(stops)
    written = 0
    for token in tokens:
        written += 1
        yield _Piece(watch.feed(token.text), written)
        if watch.met:
            yield _Piece("", written, "stop")
            return
    yield _Piece(watch.rest(), written, "length" if written >= allowed else "stop")


async def _streamed(pieces: AsyncGenerator[_Piece, None], form: _Form, prompt: int, tell_usage: bool) -> AsyncIterator[str]:
    first, written = True, 0
    try:
        async with aclosing(pieces) as whole:
            async for piece in whole:
                written = piece.tokens
                if piece.text or piece.end or first:
                    yield _event(form.part(piece.text, piece.end, first))
                    first = False
    except RecipeError as error:
        yield _event(error_body(500, str(error), "generation_failed"))
    else:
        if tell_usage:
            yield _event(form.usage(_usage(prompt, written)))
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    """A server-sent event, as https://html.spec.whatwg.org/multipage/server-sent-events.html writes it."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(prompt: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
