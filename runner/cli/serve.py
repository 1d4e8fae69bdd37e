"""`recipe serve`: offer finished models on this machine by OpenAI's HTTP interface."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.cli.options import catalog_option

if TYPE_CHECKING:
    from runner.serving.models import Offer

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BACKLOG = 2048  # connections that wait to be taken, as uvicorn has it


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="[NAME=]FOLDER...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each model; one a core by default.")
@click.option("--api-key", envvar="RECIPE_API_KEY", metavar="KEY", help="Clients must send it; $RECIPE_API_KEY.")
@click.option("--allow-remote", is_flag=True, help="Listen beyond this machine without a key.")
@catalog_option
def serve(folders: Sequence[str], host: str, port: int, threads: int | None, api_key: str | None, allow_remote: bool) -> None:
    """Offer models to any client that speaks OpenAI's interface.

    A FOLDER is the output of `recipe run` or `recipe optimize`, or any folder that onnxruntime-genai loads. Clients call its
    model NAME, which is the folder's name by default. Language models answer chat completions and completions, text encoders
    embeddings, Whisper models transcriptions. Ctrl-C ends it.
    """
    from runner.errors import UsageError

    if host not in _LOOPBACK and not (allow_remote or api_key):
        raise UsageError(
            "open-to-all",
            f"everybody who reaches {host} could use the models",
            "give --api-key KEY, or --allow-remote where that is meant",
        )
    offers = _offers(folders, threads)
    with _listening(host, port) as listener:
        _run(offers, listener, host, api_key)


def _offers(folders: Sequence[str], threads: int | None) -> list[Offer]:
    """Returns the models of the folders.

    Raises:
        UsageError: a folder holds no model, or two have one name.
        TargetUnavailable: a model was made for a target that cannot be used here.
    """
    from runner.engine.publish import finished_model
    from runner.errors import UsageError
    from runner.serving.models import Offer
    from runner.targets.target import require, session_threads, target_named

    found: list[Offer] = []
    for text in folders:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else text).expanduser()
        model = finished_model(folder) if folder.is_dir() else None
        if model is None:
            cause = f"{folder} holds no finished model" if folder.is_dir() else f"there is no folder '{folder}'"
            raise UsageError(
                "not-a-model", cause, "make one first, with 'recipe run' or 'recipe optimize', and name its folder"
            )
        called = name if equals and name else folder.resolve().name
        if any(one.name == called for one in found):
            raise UsageError("name-taken", f"two models are called '{called}'", "give them names: NAME=FOLDER")
        handle, provider = model
        require(target_named(provider), genai=handle.kind == "genai", otherwise="serve a variant for the CPU")
        found.append(Offer(called, handle, provider, session_threads(threads)))
    return found


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


def _run(offers: Sequence[Offer], listener: socket.socket, host: str, api_key: str | None) -> None:
    try:
        from runner.serving.app import app_of
        from runner.serving.server import serve_until_stopped
    except ImportError as error:
        from runner.errors import PackageMissing, Problem

        cause = f"serving needs a package that is not installed: {error.name}"
        raise PackageMissing(Problem("missing-package", cause, remedy="pip install 'onnx-recipes[serve]'")) from None
    from runner.serving.models import way_to_serve

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
