"""What clients of OpenAI's HTTP interface send and get, as far as local models can serve it.

Fields: https://platform.openai.com/docs/api-reference (chat, completions, embeddings). What is not named here is ignored, as
servers of that interface do; what would change the answer and cannot be served is refused by `Unserved`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        message: what is wrong, for people.
        code: the same for programs.
        parameter: the field that it is about, where it is about one.
    """

    def __init__(self, status: int, message: str, code: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.parameter = status, message, code, parameter

    def body(self) -> dict[str, Any]:
        """Returns the body of the answer, in OpenAI's form."""
        return error_body(self.status, self.message, self.code, self.parameter)


def error_body(status: int, message: str, code: str, parameter: str | None = None) -> dict[str, Any]:
    """Returns the body of an answer that tells an error, in OpenAI's form."""
    kind = "server_error" if status >= 500 else "authentication_error" if status == 401 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


class Body(BaseModel):
    """Base of what clients send."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model: str


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


class Sampling(Body):
    """How text is written."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Returns the texts before which the answer ends."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    def search(self) -> dict[str, Any]:
        """Returns entries of onnxruntime-genai's search options; without any the model's own hold."""
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options |= {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        if self.top_p is not None:
            options["top_p"] = self.top_p
        if self.seed is not None:
            options["random_seed"] = self.seed % 2**31
        return options

    def check(self) -> None:
        """Raises a `Refused` where something that changes the answer is asked for and not served."""
        for name, plain in (("n", 1), ("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
            if getattr(self, name) not in (None, plain):
                raise Refused(400, f"'{name}' is not served", "unsupported_parameter", name)
        if len(self.stops) > 16:
            raise Refused(400, "there are more than 16 stop texts", "too_many_stops", "stop")


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        """Returns it as chat templates take it.

        Raises:
            Refused: it holds something that is no text.
        """
        if self.role in ("tool", "function"):
            raise Refused(400, "tools are not served", "unsupported_message", "messages")
        parts = [Part(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []
        for part in parts:
            if part.type != "text" or part.text is None:
                raise Refused(400, f"this model takes text only, no '{part.type}'", "unsupported_content", "messages")
            _check_text(part.text, "a message", "messages")
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text or "" for part in parts)}


class ChatBody(Sampling):
    """A request for the next turn of a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None

    def check(self) -> None:
        """See `Sampling.check`."""
        super().check()
        if self.tools:
            raise Refused(400, "tools are not served", "unsupported_parameter", "tools")
        if self.logprobs:
            raise Refused(400, "'logprobs' is not served", "unsupported_parameter", "logprobs")
        if self.response_format and self.response_format.get("type", "text") != "text":
            raise Refused(400, "only text is served as response_format", "unsupported_parameter", "response_format")

    @property
    def most(self) -> int | None:
        """Returns the most tokens that the answer may have; None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(Sampling):
    """A request to go on with a text."""

    prompt: str | list[Any]
    echo: bool = False
    suffix: str | None = None
    logprobs: int | None = None

    def check(self) -> None:
        """See `Sampling.check`."""
        super().check()
        for name in ("echo", "suffix", "logprobs"):
            if getattr(self, name):
                raise Refused(400, f"'{name}' is not served", "unsupported_parameter", name)

    def only_prompt(self, vocabulary: int) -> str | list[int]:
        """Returns the one prompt, as text or as tokens.

        Raises:
            Refused: there are none, or several, or a token is none of the model's.
        """
        given = _texts_or_tokens(self.prompt, "prompt", vocabulary)
        if len(given) > 1:
            raise Refused(400, "one prompt at a time is served", "several_prompts", "prompt")
        if not given or not given[0]:
            raise Refused(400, "the prompt is empty", "empty_prompt", "prompt")
        return given[0]


class EmbeddingBody(Body):
    """A request for vectors."""

    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def inputs(self, vocabulary: int) -> list[str | list[int]]:
        """Returns the inputs, one text or one list of tokens each.

        Raises:
            Refused: there are none, one is empty, a token is none of the model's, or fewer dimensions are asked for.
        """
        if self.dimensions is not None:
            raise Refused(
                400, "vectors have the model's own length: leave out 'dimensions'", "unsupported_parameter", "dimensions"
            )
        given = _texts_or_tokens(self.input, "input", vocabulary)
        if not given or not all(given):
            raise Refused(400, "'input' is empty, or one of its texts is", "empty_input", "input")
        return given


def _texts_or_tokens(given: str | list[Any], field: str, vocabulary: int) -> list[str | list[int]]:
    """Returns texts and lists of tokens, from one text, one list of tokens, or a list of either.

    Args:
        given: what the client sent.
        field: where.
        vocabulary: tokens are whole numbers from 0 to below this.

    Raises:
        Refused: something in it is neither text nor such a token; tells where.
    """
    if isinstance(given, str) or not given:
        return [_text_or_tokens(given, field, field, vocabulary)] if given else []
    if any(isinstance(one, str | list) for one in given):
        return [_text_or_tokens(one, f"{field}[{at}]", field, vocabulary) for at, one in enumerate(given)]
    return [_tokens(given, field, field, vocabulary)]


def _text_or_tokens(given: Any, place: str, field: str, vocabulary: int) -> str | list[int]:
    if isinstance(given, list):
        return _tokens(given, place, field, vocabulary)
    if not isinstance(given, str):
        raise Refused(400, f"{place} is a text or a list of tokens, not {_shown(given)}", "invalid_input", field)
    _check_text(given, place, field)
    return given


def _check_text(given: str, place: str, field: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in given):
        raise Refused(400, f"{place} is no text: half of a surrogate pair is in it", "invalid_input", field)


def _tokens(given: Sequence[Any], place: str, field: str, vocabulary: int) -> list[int]:
    for at, token in enumerate(given):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocabulary:
            told = f"tokens of this model are whole numbers from 0 to {vocabulary - 1}, not {_shown(token)}"
            raise Refused(400, f"{place}[{at}]: {told}", "invalid_token", field)
    return list(given)


def _shown(given: Any) -> str:
    text = json.dumps(given)
    return text if len(text) <= 40 else f"{text[:40]}…"
