"""Everything that decides a result is in its fingerprint, and a miss can be explained."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest

from runner.engine import fingerprint as module
from runner.engine.fingerprint import differences, fingerprint, packages_for, step_ingredients
from runner.passes.table import get
from runner.targets.target import TARGETS


def ingredients(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "pass_": get("OnnxDynamicQuantization"),
        "options": {"per_channel": True},
        "input_digest": "a",
        "target": TARGETS["cpu"],
        "data": {"user_script": "b"},
    }
    return step_ingredients(**{**arguments, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"pass_": get("OnnxStaticQuantization")},
        {"options": {"per_channel": False}},
        {"input_digest": "c"},
        {"target": TARGETS["cuda"]},
        {"data": {"user_script": "d"}},
        {"data": {}},
    ],
)
def test_each_ingredient_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert fingerprint(ingredients(**changes)) != fingerprint(ingredients())
    assert fingerprint(ingredients()) == fingerprint(ingredients())


def test_another_library_version_is_a_miss_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ingredients()
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0" if name == "onnxruntime" else real(name))
    module.version_of.cache_clear()
    after = ingredients()
    module.version_of.cache_clear()
    assert fingerprint(before) != fingerprint(after)
    assert differences(before, after) == [f"packages.onnxruntime: {before['packages']['onnxruntime']} -> 99.0"]


def test_the_runtime_that_counts_is_that_of_the_target() -> None:
    assert "onnxruntime-gpu" in packages_for(get("OnnxDynamicQuantization"), TARGETS["cuda"])
    assert "onnxruntime-gpu" not in packages_for(get("OnnxDynamicQuantization"), TARGETS["cpu"])
