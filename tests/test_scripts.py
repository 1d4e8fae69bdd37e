"""Scripts that make what people see."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name == "nt", reason="no terminal devices there")
@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("one\r\ntwo\r\n", "one\ntwo"),
        ("10 %\r\x1b[2K50 %\r\x1b[2K100 %\r\n", "100 %"),
        ("first\r\nsecond\r\n\x1b[1A\x1b[2Kthird\r\n", "first\nthird"),
        ("\x1b[?25l\x1b[31mred\x1b[0m\x1b[?25h", "\x1b[31mred\x1b[0m"),
    ],
)
def test_screen_keeps_what_stays(written: str, seen: str) -> None:
    assert _script("draw_terminal").screen(written) == seen


@pytest.mark.skipif(os.name == "nt", reason="no terminal devices there")
def test_terminal_output_is_that_of_a_terminal() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.stdout.isatty())"]
    assert _script("draw_terminal").terminal_output(command).strip() == "True"


def test_sample_images_are_always_the_same(tmp_path: Path) -> None:
    """Pixels are compared, since encoders differ between versions."""
    _script("draw_sample_images").draw(tmp_path, 2, seed=1)
    for path in sorted(tmp_path.iterdir()):
        committed = Image.open(ROOT / "recipes" / "resnet" / "resnet-50" / "sample_data" / "images" / path.name).convert("RGB")
        drawn = Image.open(path).convert("RGB")
        assert drawn.size == committed.size == (224, 224)
        pairs = zip(drawn.tobytes(), committed.tobytes(), strict=True)
        assert sum(abs(one - other) for one, other in pairs) / (224 * 224 * 3) < 2
