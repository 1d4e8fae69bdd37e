"""`recipe convert-adapters`: an adapter in peft's format as a file that ONNX Runtime GenAI loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from runner.cli.flags import flag, flags

if TYPE_CHECKING:
    from runner.models.adapter_weights import Format

_FORMATS = {"onnx_adapter": "onnx_adapter", "safetensors": "safetensors", "npz": "numpy"}


@click.command()
@flags(
    flag("adapter", "--adapter_path", "-a", required=True, type=click.Path(path_type=Path), help="Folder in peft's format."),
    flag(
        "output",
        "--output_path",
        "-o",
        required=True,
        type=click.Path(path_type=Path),
        help="File, its ending may be left out.",
    ),
    flag("file_format", "--adapter_format", type=click.Choice(list(_FORMATS)), default="onnx_adapter", help="onnx_adapter."),
    flag(
        "dtype", "--dtype", type=click.Choice(["float32", "float16"]), default="float32", help="Of the graph's inputs; float32."
    ),
)
def convert_adapters(adapter: Path, output: Path, file_format: str, dtype: str) -> None:
    """Turn a LoRA adapter into a file for models that take adapters.

    Such a model comes of ModelBuilder on the model with an adapter of the same layers, and ExtractAdapters behind it.
    """
    from runner.errors import StoreError
    from runner.models.adapter_conversion import genai_adapter
    from runner.models.adapter_weights import save_weights

    weights = genai_adapter(adapter.expanduser(), dtype)
    goal = output.expanduser().absolute()
    chosen = cast("Format", _FORMATS[file_format])
    stem = goal.name.removesuffix(f".{file_format}")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        name = save_weights(weights, goal.parent, stem, chosen)
    except OSError as error:
        raise StoreError("cannot-write", f"{goal}: {error.strerror or error}", "choose another --output_path") from None
    click.echo(f"{len(weights)} weights in {goal.parent / name}")
