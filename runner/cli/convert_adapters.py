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
        "dtype", "--dtype", type=click.Choice(["float32", "float16"]), help="Of the graph's inputs; that of --base, or float32."
    ),
    flag("base", "--base", type=click.Path(path_type=Path), help="Folder of the model that takes it: the adapter must fit."),
)
def convert_adapters(adapter: Path, output: Path, file_format: str, dtype: str | None, base: Path | None) -> None:
    """Turn a LoRA adapter into a file for models that take adapters.

    'recipe finetune --multi_lora' makes such a model.
    """
    from runner.errors import StoreError
    from runner.models.adapter_conversion import adapter_inputs_of, check_fit, genai_adapter
    from runner.models.adapter_weights import save_weights

    taken = adapter_inputs_of(base.expanduser()) if base else {}
    of_base = next((type_ for type_, _ in taken.values()), "float32")
    weights = genai_adapter(adapter.expanduser(), dtype or of_base)
    if base:
        check_fit(weights, taken, base)
    goal = output.expanduser().absolute()
    chosen = cast("Format", _FORMATS[file_format])
    stem = goal.name.removesuffix(f".{file_format}")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        name = save_weights(weights, goal.parent, stem, chosen)
    except OSError as error:
        raise StoreError("cannot-write", f"{goal}: {error.strerror or error}", "choose another --output_path") from None
    click.echo(f"{len(weights)} weights in {goal.parent / name}")
