"""Options of every pass that writes an ONNX file: how its weights are stored."""

from __future__ import annotations

from pydantic import Field

from runner.models.files import ExternalData
from runner.recipe.options import PassOptions


class ExternalDataOptions(PassOptions):
    """How the weights of the written graph are stored."""

    save_as_external_data: bool = Field(
        False, description="store weights in a file beside the graph; graphs above 1.5 GB always do"
    )
    all_tensors_to_one_file: bool = Field(True, description="one file for all weights, instead of one a tensor")
    external_data_name: str | None = Field(None, description="name of that file; the graph's name with .data by default")
    size_threshold: int = Field(1024, ge=0, description="smaller tensors (bytes) stay in the graph; those below 256 always do")
    convert_attribute: bool = Field(False, description="move tensors of node attributes out as well")

    def external_data(self) -> ExternalData:
        """Returns the options in the form that `runner.models.files.write_graph` takes."""
        return ExternalData(
            self.save_as_external_data,
            self.all_tensors_to_one_file,
            self.external_data_name,
            self.size_threshold,
            self.convert_attribute,
        )
