"""`recipe serve`: offer models on this machine by OpenAI's HTTP interface."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import catalog_option, complete_ids, request_options

if TYPE_CHECKING:
    from runner.cli.ready_model import Ready
    from runner.engine.request import Request

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BACKLOG = 2048  # connections that wait to be taken, as uvicorn has it


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[NAME=]MODEL...", shell_complete=complete_ids)
@request_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="RECIPE_API_KEY", metavar="KEY", help="Clients must send it; $RECIPE_API_KEY.")
@click.option("--allow-remote", is_flag=True, help="Listen beyond this machine without a key.")
@catalog_option
def serve(words: Sequence[str], host: str, port: int, api_key: str | None, allow_remote: bool, **chosen: Any) -> None:
    """Offer models to any client that speaks OpenAI's interface.

    A MODEL is a recipe (id, id/variant, folder or config file), whose model is made first where it is not there, or the folder
    of a finished model: the output of `recipe run` or `recipe optimize`, or any that onnxruntime-genai loads. Clients call it
    NAME, which is the folder's name by default, ID-VARIANT of a recipe. Language models answer chat completions and
    completions, text encoders embeddings, Whisper models transcriptions. Ctrl-C ends it.
    """
    from runner.errors import UsageError

    if host not in _LOOPBACK and not (allow_remote or api_key):
        raise UsageError(
            "open-to-all",
            f"everybody who reaches {host} could use the models",
            "give --api-key KEY, or --allow-remote where that is meant",
        )
    asked = _asked(words, chosen)
    with _listening(host, port) as listener:
        _run(asked, listener, host, api_key)


def _asked(words: Sequence[str], chosen: dict[str, Any]) -> dict[str, Ready | Request]:
    """Returns the models by name: those that lie in their folders, and recipes, of which nothing is made yet.

    Raises:
        UsageError: a word names no model, two models have one name, or what a recipe makes cannot be served.
        TargetUnavailable: a model is for a target that cannot be used here.
    """
    from runner.cli.ready_model import finished_in
    from runner.errors import UsageError

    found: dict[str, Ready | Request] = {}
    for text in words:
        name, equals, word = text.partition("=")
        word = word if equals else text
        one = finished_in(Path(word).expanduser(), chosen, "serve a variant for the CPU") or _recipe(word, chosen)
        called = name if equals and name else _folder_of(one).name
        if called in found:
            raise UsageError("name-taken", f"two models are called '{called}'", "give them names: NAME=MODEL")
        found[called] = one
    return found


def _folder_of(one: Ready | Request) -> Path:
    from runner.engine.request import Request, output_of

    return output_of(one) if isinstance(one, Request) else one.model.folder.resolve()


def _recipe(word: str, chosen: dict[str, Any]) -> Request:
    """Returns the request of the recipe that a word names."""
    from runner.cli.request import make_request
    from runner.engine.request import kind_made, require_device
    from runner.errors import UsageError
    from runner.serving.models import check_served

    try:
        request = make_request(word, (), **chosen)
    except UsageError as error:
        if error.problems[0].rule != "not-a-recipe":
            raise
        cause = f"{word} holds no finished model, and no recipe"
        remedy = "make one with 'recipe run' or 'recipe optimize' and name its folder, or name a recipe"
        raise UsageError("not-a-model", cause, remedy) from None
    require_device(request)
    task = request.config.input_model.task or (request.info.model.task if request.info else None)
    check_served(request.name, kind_made(request.config), task, "'recipe show' tells the recipe's other variants")
    return request


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket of the address, before any model is loaded.

    Raises:
        UsageError: the address cannot be had.
    """
    from runner.errors import UsageError

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        told = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UsageError(
                "port-taken", f"{host}:{port} cannot be listened at: {told}", "choose another --port; 0 takes a free one"
            ) from None
        if isinstance(error, PermissionError):
            cause = f"port {port} cannot be listened at: {told}"
            raise UsageError("port-not-allowed", cause, "choose a --port from 1024 on; 0 takes a free one") from None
        raise UsageError(
            "host-not-here",
            f"--host {host} cannot be listened at: {told}",
            "give an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all its networks",
        ) from None
    return listener


def _run(asked: Mapping[str, Ready | Request], listener: socket.socket, host: str, api_key: str | None) -> None:
    from runner.cli.ready_model import made_of
    from runner.engine.request import Request

    try:
        from runner.serving.app import app_of
        from runner.serving.server import serve_until_stopped
    except ImportError as error:
        from runner.errors import PackageMissing, Problem

        cause = f"serving needs a package that is not installed: {error.name}"
        raise PackageMissing(Problem("missing-package", cause, remedy="pip install 'onnx-recipes[serve]'")) from None
    from runner.serving.models import Offer, way_to_serve

    for name, one in asked.items():
        if not isinstance(one, Request):
            way_to_serve(Offer(name, one.model, one.target.provider, one.threads))  # before any recipe is run
    ready = {name: made_of(one) if isinstance(one, Request) else one for name, one in asked.items()}
    offers = [Offer(name, one.model, one.target.provider, one.threads) for name, one in ready.items()]
    ways = [way_to_serve(offer) for offer in offers]
    models = []
    for way, offer in zip(ways, offers, strict=True):
        click.echo(f"loading {offer.name} from {offer.handle.folder}", err=True)
        models.append(way(offer))
    app = app_of(models, api_key, only_loopback=host in _LOOPBACK)
    told = f"[{host}]" if ":" in host else host
    for model in models:
        click.echo(f"{model.name}: {model.does}", err=True)
    listener.listen(_BACKLOG)
    click.echo(f"listening at http://{told}:{listener.getsockname()[1]}/v1 (Ctrl-C ends it)")
    sys.stdout.flush()
    serve_until_stopped(app, models, listener)
