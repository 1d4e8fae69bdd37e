"""From what was typed to a `Request`, with the catalogue of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cli.options import catalog
from runner.compose.request import make_request as make
from runner.engine.request import Request


def make_request(word: str | None, configs: Sequence[Path], **chosen: Any) -> Request:
    """Returns `runner.compose.request.make_request` of the catalogue that `--catalog` names."""
    return make(word, configs, catalog=catalog(), **chosen)
