"""The receipt: what was made, of what, with what, and how far it is from its source."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import psutil

import runner
from runner.engine.fingerprint import versions
from runner.engine.plan import EVALUATION_PACKAGES, Plan
from runner.engine.store import Entry, Store

VERSION = 1


def make_receipt(
    plan: Plan, entry: Entry, store: Store, structure: dict[str, Any] | None, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Returns the receipt of a finished run as plain data; it names no user, host or absolute path.

    Args:
        plan: what was decided.
        entry: the last step's result.
        store: where the other steps' results are.
        structure: what `check_structure` found; None for the CPU.
        evaluation: `metrics` and `notes` of the run's evaluator.
    """
    request = plan.request
    return {
        "receipt": VERSION,
        "recipe": request.info.name if request.info else None,
        "variant": request.variant,
        "config": [path.name for path in request.loaded.files],
        "smoke": request.smoke,
        "model": {"id": request.config.input_model.model_path, "from": plan.source.told, "digest": plan.source.digest},
        "task": entry.model.task,
        "kind": entry.model.kind,
        "file": entry.model.file,
        "attributes": entry.model.attributes,
        "target": plan.target.name,
        "provider": plan.target.provider,
        "fingerprint": entry.fingerprint,
        "steps": [_step(store.told(step.fingerprint or ""), step.name, step.pass_name, step.options) for step in plan.steps],
        "structure": structure,
        "metrics": evaluation["metrics"],
        "files": entry.record["files"],
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "environment": _environment(plan),
        "notes": [*plan.notes, *evaluation["notes"]],
    }


def _step(entry: Entry | None, name: str, pass_name: str, options: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"step": name, "pass": pass_name, "options": options}
    if entry is None:  # finished once, and taken out of the store since
        return told
    record = entry.record
    return {
        **told,
        "fingerprint": entry.fingerprint,
        "seconds": round(record["seconds"], 3),
        "bytes": entry.size,
        "said": record.get("said", []),
        **({"components": record["components"]} if record.get("components") else {}),
        "parity": record.get("parity"),
        "packages": record["ingredients"].get("packages", {}),
    }


def _environment(plan: Plan) -> dict[str, Any]:
    return {
        "runner": runner.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": plan.threads,
        "memory_bytes": psutil.virtual_memory().total,
        "packages": versions({*EVALUATION_PACKAGES, "onnx", "onnx-ir", "onnxscript"}),
    }
