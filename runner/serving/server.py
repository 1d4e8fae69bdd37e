"""The web server: from a listening socket and an application to Ctrl-C."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from runner.serving.models import Served

_PATIENCE_SECONDS = 5  # for clients that do not read the end of their answer


def serve_until_stopped(app: FastAPI, models: Sequence[Served], listener: socket.socket) -> None:
    """Answers requests until Ctrl-C or a termination signal, which end answers behind their current step."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=_PATIENCE_SECONDS
    )
    _Server(config, models).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, models: Sequence[Served]) -> None:
        super().__init__(config)
        self._models = models

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal: what is cut short from now on is meant to be, and no error to be logged."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        for model in self._models:
            model.end()
        super().handle_exit(sig, frame)
