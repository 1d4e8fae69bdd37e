"""Open axes become sizes, or the error says which axes there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from runner.errors import InvalidRecipe
from runner.models.handle import ModelHandle
from runner.models.session import open_session
from runner.passes.graph.fixed_shape import DynamicToFixedShapeOptions


@pytest.fixture
def text_model(tmp_path: Path) -> ModelHandle:
    """Two inputs that share their axes; the output has one of them, by another name."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[batch,sequence] ids, float[batch,sequence,4] mask) => (float[b,1,4] y) {
        axes = Constant <value = int64[1] {1}> ()
        wide = Unsqueeze (ids, minus)
        product = Mul (wide, mask)
        y = ReduceSum (product, axes)
    }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "minus"))
    (tmp_path / "text").mkdir()
    onnx.save(model, tmp_path / "text" / "model.onnx")
    return ModelHandle("onnx", tmp_path / "text", "model.onnx")


def shapes(model: ModelHandle) -> list[list[int | str]]:
    session = open_session(model, 1)
    return [list(value.shape) for value in (*session.get_inputs(), *session.get_outputs())]


@pytest.mark.parametrize(
    "options",
    [
        {"dim_param": ["batch", "sequence"], "dim_value": [1, 7]},
        {"input_name": ["ids", "mask"], "input_shape": [[1, 7], [1, 7, 4]]},
        {"input_name": ["ids"], "input_shape": [[1, 7]]},
    ],
)
def test_inputs_and_outputs_are_fixed(options, text_model, apply_pass):
    made = apply_pass("DynamicToFixedShape", text_model, **options)
    assert shapes(made) == [[1, 7], [1, 7, 4], [1, 1, 4]]
    assert "every shape is fixed" in apply_pass.said[-1]
    given = {"ids": np.ones((1, 7), np.float32), "mask": np.ones((1, 7, 4), np.float32)}
    np.testing.assert_array_equal(open_session(made, 1).run(None, given)[0], np.full((1, 1, 4), 7.0))


def test_one_axis_stays_open(text_model, apply_pass):
    made = apply_pass("DynamicToFixedShape", text_model, dim_param=["sequence"], dim_value=[7])
    assert shapes(made)[0] == ["batch", 7]
    assert "outputs still open: y" in apply_pass.said[-1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dim_param": ["bacth"], "dim_value": [1]}, "still open are batch, sequence"),
        ({"dim_param": ["batch", "batch"], "dim_value": [1, 2]}, "axis 'batch' two sizes"),
        ({"input_name": ["id"], "input_shape": [[1, 7]]}, "did you mean 'ids'"),
        ({"input_name": ["ids"], "input_shape": [[1, 7, 4]]}, "has 2 axes .batch, sequence., input_shape gives 3"),
        ({"input_name": ["mask"], "input_shape": [[1, 7, 5]]}, "axis '4' of input 'mask' is 4, input_shape gives 5"),
        ({"input_name": ["ids", "mask"], "input_shape": [[1, 7], [1, 8, 4]]}, "axis 'sequence' of input 'mask' is 7"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_axes(options, told, text_model, apply_pass):
    with pytest.raises(InvalidRecipe, match=told) as caught:
        apply_pass("DynamicToFixedShape", text_model, **options)
    assert "batch, sequence" in str(caught.value)


def test_names_of_axes_that_are_fixed_already_do_no_harm(text_model, apply_pass):
    made = apply_pass("DynamicToFixedShape", text_model, dim_param=["batch", "sequence", "channels"], dim_value=[1, 7, 4])
    assert shapes(made)[0] == [1, 7]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give either dim_param"),
        ({"dim_param": ["a"], "dim_value": [1], "input_name": ["x"], "input_shape": [[1]]}, "give either dim_param"),
        ({"dim_param": ["a", "b"], "dim_value": [1]}, "same number"),
        ({"dim_param": ["a"], "dim_value": [-1]}, "negative"),
        ({"input_name": ["x"], "input_shape": [[0]]}, "below 1"),
    ],
)
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ValidationError, match=told):
        DynamicToFixedShapeOptions.model_validate(options)
