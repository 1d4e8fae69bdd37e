"""Session options in genai_config.json: how onnxruntime-genai spells them, and those that tuning found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.models.generation import PARTS_WITH_SESSIONS, genai_config

_FILE = "genai_config.json"
_LEVELS = {0: "ORT_DISABLE_ALL", 1: "ORT_ENABLE_BASIC", 2: "ORT_ENABLE_EXTENDED", 99: "ORT_ENABLE_ALL"}


def as_genai(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns session options as the `session_options` of a part of genai_config.json.

    Args:
        options: as `runner.models.session.tuned_options` gives them.
    """
    told = {name: int(options[name]) for name in ("intra_op_num_threads", "inter_op_num_threads") if options.get(name)}
    level = options.get("graph_optimization_level")
    return {
        **told,
        **({"graph_optimization_level": _LEVELS[level]} if level is not None else {}),
        **{key: str(value) for key, value in options.get("config", {}).items()},
    }


def overlay_of(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what lays session options over every part of a genai_config.json that has a session."""
    parts = [part for part in PARTS_WITH_SESSIONS if part in config["model"]]
    return {"model": {part: {"session_options": as_genai(options)} for part in parts}}


def write_options(source: Path, output: Path, options: Mapping[str, Any]) -> None:
    """Writes a folder's genai_config.json with session options set in every part that has a session."""
    config = genai_config(source)
    for part, told in overlay_of(config, options)["model"].items():
        config["model"][part].setdefault("session_options", {}).update(told["session_options"])
    (output / _FILE).unlink(missing_ok=True)  # it may be a link to the source's
    (output / _FILE).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
