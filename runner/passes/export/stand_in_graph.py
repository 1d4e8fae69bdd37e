"""A small ONNX graph with random weights, in place of one that another run has yet to make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from runner.models.files import write_graph
from runner.models.handle import ModelHandle
from runner.passes.declaration import Pass, PassContext
from runner.recipe.options import PassOptions

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

SEED = 20
WIDTH, VOCABULARY, BLOCKS, PATCH = 256, 1008, 2, 16
_SEES = ("vision", "image", "visual", "vae", "unet")
_HEARS = ("audio", "speech", "sound")


class StandInGraphOptions(PassOptions):
    """Options of StandInGraph."""

    name: str = Field(description="path of the graph that is not here; its words say what kind of input it reads")


def _apply(model: ModelHandle, options: StandInGraphOptions, context: PassContext) -> ModelHandle:
    kind = _kind(options.name.lower())
    context.say(f"making a small graph that reads {kind} in place of {options.name}")
    write_graph(_Sketch().draw(kind), context.output / "model.onnx")
    return ModelHandle("onnx", context.output, "model.onnx", model.task, {"twin_of": options.name})


Reads = Literal["images", "sound", "tokens"]


def _kind(name: str) -> Reads:
    if any(word in name for word in _SEES):
        return "images"
    return "sound" if any(word in name for word in _HEARS) else "tokens"


class _Sketch:
    """Collects the nodes of a transformer-like graph: Gather or Conv, LayerNormalization, MatMul, Gelu, Add."""

    def __init__(self) -> None:
        import numpy as np

        self._random = np.random.default_rng(SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def draw(self, kind: Reads) -> onnx.ModelProto:
        """Returns the graph: `input_ids` to `logits`, or `pixel_values` or `audio_features` to `features`."""
        import onnx

        float_, int_ = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
        reads = {
            "images": ("pixel_values", float_, ["batch", 3, "height", "width"], "features"),
            "sound": ("audio_features", float_, ["batch", "frames", 128], "features"),
            "tokens": ("input_ids", int_, ["batch", "sequence"], "logits"),
        }
        name, dtype, shape, output = reads[kind]
        stream = {"images": self._patches, "sound": self._frames, "tokens": self._tokens}[kind](name)
        for at in range(BLOCKS):
            stream = self._block(f"/layers.{at}", stream)
        width = VOCABULARY if kind == "tokens" else WIDTH
        head = self._weight("head.weight", WIDTH, width)
        self._node("MatMul", "/head/MatMul", [stream, head], output)
        given = onnx.helper.make_tensor_value_info(name, dtype, shape)
        result = onnx.helper.make_tensor_value_info(output, float_, ["batch", "positions", width])
        graph = onnx.helper.make_graph(self._nodes, "stand-in", [given], [result], self._weights)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)

    def _tokens(self, ids: str) -> str:
        return self._node("Gather", "/embed_tokens/Gather", [self._weight("embed_tokens.weight", VOCABULARY, WIDTH), ids])

    def _frames(self, features: str) -> str:
        return self._node("MatMul", "/project/MatMul", [features, self._weight("project.weight", 128, WIDTH)])

    def _patches(self, pixels: str) -> str:
        """One vector for each square of pixels, as a vision transformer begins."""
        import numpy as np

        kernel = self._tensor("patch.weight", self._draw(WIDTH, 3, PATCH, PATCH) / np.sqrt(3 * PATCH * PATCH))
        maps = self._node("Conv", "/patch/Conv", [pixels, kernel], kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
        shape = self._tensor("patch.shape", np.array([0, WIDTH, -1], dtype=np.int64))
        return self._node(
            "Transpose", "/patch/Transpose", [self._node("Reshape", "/patch/Reshape", [maps, shape])], perm=[0, 2, 1]
        )

    def _block(self, name: str, stream: str) -> str:
        import numpy as np

        scale = self._tensor(f"{name}/norm.weight", np.ones(WIDTH, dtype=np.float32))
        bias = self._tensor(f"{name}/norm.bias", np.zeros(WIDTH, dtype=np.float32))
        inner = self._node("LayerNormalization", f"{name}/LayerNormalization", [stream, scale, bias], axis=-1)
        inner = self._node("MatMul", f"{name}/up/MatMul", [inner, self._weight(f"{name}/up.weight", WIDTH, 2 * WIDTH)])
        inner = self._node("Gelu", f"{name}/Gelu", [inner])
        inner = self._node("MatMul", f"{name}/down/MatMul", [inner, self._weight(f"{name}/down.weight", 2 * WIDTH, WIDTH)])
        return self._node("Add", f"{name}/Add", [stream, inner])

    def _node(self, operator: str, name: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        import onnx

        result = output or f"{name}_output_0"
        self._nodes.append(onnx.helper.make_node(operator, inputs, [result], name=name, **attributes))
        return result

    def _weight(self, name: str, rows: int, columns: int) -> str:
        return self._tensor(name, self._draw(rows, columns) / rows**0.5)

    def _draw(self, *shape: int) -> NDArray[Any]:
        import numpy as np

        return self._random.standard_normal(shape, dtype=np.float32)

    def _tensor(self, name: str, values: NDArray[Any]) -> str:
        import numpy as np
        import onnx

        kept = values if values.dtype == np.int64 else values.astype(np.float32)
        self._weights.append(onnx.numpy_helper.from_array(kept, name))
        return name


PASS = Pass(
    name="StandInGraph",
    summary="Makes a small ONNX graph with random weights, for quick runs of a recipe whose graph another one makes.",
    options=StandInGraphOptions,
    apply=_apply,
    takes=("onnx",),
    gives="onnx",
    packages=("onnx",),
)
