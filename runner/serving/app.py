"""The HTTP interface: routes of OpenAI's API over the models that are loaded."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from runner.errors import RecipeError, did_you_mean
from runner.serving.models import SERVER_ENDS, Listener, Served, TextEncoder, Writer
from runner.serving.protocol import ChatBody, CompletionBody, EmbeddingBody, Refused, error_body
from runner.serving.speech import Way, transcribe
from runner.serving.writing import chat, complete

Kind = TypeVar("Kind", bound=Served)
_CODES = {404: "not_found", 405: "method_not_allowed"}
_LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


def app_of(models: Sequence[Served], api_key: str | None = None, *, only_loopback: bool = True) -> FastAPI:
    """Returns the application.

    Args:
        models: what is served.
        api_key: clients must send it; None lets everybody in who can reach the server.
        only_loopback: requests must name this machine as their host, so that no web page can reach it under a name of its own.
    """
    app = FastAPI(title="recipe serve", docs_url=None, redoc_url=None, openapi_url=None)
    if only_loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)
    _tell_errors(app)
    if api_key is not None:
        _ask_key(app, api_key)
    _list_models(app, models)
    _answer(app, models)
    return app


def _tell_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        told = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(error_body(400, told, "invalid_request", where or None), 400)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        told = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(
            error_body(error.status_code, told, _CODES.get(error.status_code, "invalid_request")), error.status_code
        )

    @app.exception_handler(RecipeError)
    async def failed(_: Request, error: RecipeError) -> Response:
        status = 503 if error.problems[0].rule == SERVER_ENDS else 500
        return JSONResponse(error_body(status, str(error), error.problems[0].rule), status)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return JSONResponse(error_body(500, f"this is a bug of the server: {error!r}", "internal_error"), 500)


def _ask_key(app: FastAPI, api_key: str) -> None:
    @app.middleware("http")
    async def let_in(request: Request, go_on: Any) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.url.path != "/health" and not hmac.compare_digest(given.encode(), api_key.encode()):
            return JSONResponse(error_body(401, "the API key is missing or wrong", "invalid_api_key"), 401)
        answer: Response = await go_on(request)
        return answer


def _list_models(app: FastAPI, models: Sequence[Served]) -> None:
    started = int(time.time())

    def told(model: Served) -> dict[str, Any]:
        return {"id": model.name, "object": "model", "created": started, "owned_by": "recipe", "does": model.does}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": [told(model) for model in models]}

    @app.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        return told(_named(models, name))


def _named(models: Sequence[Served], name: str) -> Served:
    found = next((model for model in models if model.name == name), None)
    if found is None:
        remedy = did_you_mean(name, [model.name for model in models])
        raise Refused(404, f"there is no model '{name}': {remedy}", "model_not_found", "model")
    return found


def _answer(app: FastAPI, models: Sequence[Served]) -> None:
    def chosen(name: str, kind: type[Kind]) -> Kind:
        model = _named(models, name)
        if not isinstance(model, kind):
            raise Refused(400, f"'{name}' is for {model.does}, not for {kind.does}", "wrong_model", "model")
        return model

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await chat(chosen(body.model, Writer), body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await complete(chosen(body.model, Writer), body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody) -> dict[str, Any]:
        encoder = chosen(body.model, TextEncoder)
        vectors, tokens = await encoder.alone(encoder.embed, body.inputs(encoder.vocabulary))
        told = [_vector(row, body.encoding_format) for row in vectors]
        data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(told)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": encoder.name, "data": data, "usage": usage}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        model: Annotated[str, Form()],
        file: Annotated[UploadFile, File()],
        response_format: Annotated[str, Form()] = "json",
        stream: Annotated[bool, Form()] = False,
        language: Annotated[str | None, Form()] = None,
        temperature: Annotated[float, Form(ge=0, le=1)] = 0,  # the likeliest token is taken whatever it is
    ) -> Response:
        listener = chosen(model, Listener)
        way = Way(response_format, stream, language)
        return await transcribe(listener, await file.read(), file.filename or "sound.wav", way)


def _vector(row: Any, form: str) -> list[float] | str:
    """A vector as numbers, or as the base64 of its little-endian fp32 bytes."""
    if form == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")
    return [float(value) for value in row]
