"""One trial of session options on a language model in a process of its own: prints the median milliseconds of a token."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from runner.models.generation import genai_config, import_genai
from runner.passes.genai.session_config import overlay_of

_WARM_UPS = 3
_FEWEST = 5
_TOKEN = 1  # the time of a token does not depend on which one it is


def measure(order: dict[str, Any]) -> float:
    """Returns the median time of a generated token behind a prompt, in milliseconds.

    Args:
        order: ``folder`` of the model, ``prompt`` (its tokens), ``options`` (as `overlay_of` takes them), ``seconds``.
    """
    library = import_genai()
    described = genai_config(Path(order["folder"]))
    room = int(described["model"]["context_length"])
    prompt = max(1, min(int(order["prompt"]), room // 2))
    config = library.Config(order["folder"])
    config.overlay(json.dumps(overlay_of(described, order["options"])))
    model = library.Model(config)
    taken: list[float] = []
    end = time.perf_counter() + order["seconds"]
    while time.perf_counter() < end or len(taken) < _FEWEST:
        parameters = library.GeneratorParams(model)
        parameters.set_search_options(max_length=room, min_length=room)
        generator = library.Generator(model, parameters)
        generator.append_tokens([_TOKEN] * prompt)
        for number in range(room - prompt - 1):
            started = time.perf_counter()
            generator.generate_next_token()
            if number >= _WARM_UPS or room - prompt <= 2 * _WARM_UPS:
                taken.append(time.perf_counter() - started)
            if time.perf_counter() > end and len(taken) >= _FEWEST:
                break
    return statistics.median(taken) * 1000


if __name__ == "__main__":
    sys.stdout.write(f"{measure(json.load(sys.stdin))}\n")
