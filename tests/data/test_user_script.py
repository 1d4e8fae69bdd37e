"""Scripts written for Olive find what they import, and nothing of one script reaches another or stays behind."""

from __future__ import annotations

import sys

import pytest

from runner.data.user_script import import_script
from runner.errors import InvalidRecipe, RunFailed

REGISTERING = """
from olive.data.registry import Registry

@Registry.register_dataset("rows")
def load(**kwargs):
    return {value}

def registry():
    from olive.data.registry import Registry
    return Registry
"""


def write(folder, name: str, text: str):
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_names_that_recipes_import_are_there(tmp_path):
    script = write(
        tmp_path,
        "script.py",
        "from olive.common.utils import format_data, get_attr\n"
        "from olive.constants import Framework, ModelFileFormat\n"
        "from olive.data.component.dataset import BaseDataset, ClassificationDataset, DummyDataset\n"
        "from olive.data.component.dataloader import default_dataloader\n"
        "from olive.data.component.load_dataset import huggingface_dataset\n"
        "from olive.data.constants import IGNORE_INDEX\n"
        "from olive.data.registry import Registry\n"
        "from olive.evaluator.metric_result import MetricResult, flatten_metric_result\n"
        "from olive.hardware.accelerator import AcceleratorSpec, Device\n"
        "from olive.model import HfModelHandler, OliveModelHandler, ONNXModelHandler, PyTorchModelHandler\n"
        "import olive.data.registry as again\n"
        "assert again.Registry is Registry\n"
        "def dataset():\n"
        "    return BaseDataset([{'ids': 1, 'label': 2}, {'ids': 3, 'label': 4}], 'label', max_samples=1)\n",
    )
    data = import_script(script).function("dataset")()
    assert list(data) == [({"ids": 1}, 2)]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from olive.passes import Pass", "olive.passes"),
        ("from olive.model import CompositeModelHandler", "olive.model.CompositeModelHandler"),
        ("import olive.workflows", "olive.workflows"),
    ],
)
def test_what_has_no_counterpart_is_named(tmp_path, line, name):
    with pytest.raises(RunFailed, match=f"imports '{name}', which this runner does not stand in for"):
        import_script(write(tmp_path, "script.py", f"{line}\n"))


def test_a_script_may_do_without(tmp_path):
    text = "try:\n    from olive.passes import Pass\nexcept ImportError:\n    Pass = None\ndef found():\n    return Pass\n"
    assert import_script(write(tmp_path, "script.py", text)).function("found")() is None


def test_two_scripts_register_one_name_each_for_itself(tmp_path):
    one = import_script(write(tmp_path / "one", "script.py", REGISTERING.format(value=1)))
    other = import_script(write(tmp_path / "other", "script.py", REGISTERING.format(value=2)))
    assert one.components.find("dataset", "Rows")() == 1
    assert other.components.find("dataset", "rows")() == 2
    assert one.function("registry")() is one.components
    assert other.function("registry")() is other.components


def test_neighbours_of_one_name_do_not_meet(tmp_path):
    scripts = []
    for name in ("one", "other"):
        write(tmp_path / name, "helpers.py", f"NAME = '{name}'\n")
        text = "import helpers\ndef now():\n    import helpers\n    return helpers.NAME\n"
        scripts.append(import_script(write(tmp_path / name, "script.py", text)))
    assert [script.function("now")() for script in scripts] == ["one", "other"]
    assert "helpers" not in sys.modules


def test_further_modules_come_from_the_script_folder(tmp_path):
    write(tmp_path / "more" / "kit", "__init__.py", "from kit.part import VALUE\n")
    write(tmp_path / "more" / "kit", "part.py", "VALUE = 5\n")
    text = "from dataclasses import dataclass\nimport kit\n@dataclass\nclass Held:\n    value: int = kit.VALUE\n"
    script = import_script(write(tmp_path, "script.py", f"from __future__ import annotations\n{text}"), tmp_path / "more")
    assert script.function("Held")().value == 5


def test_libraries_that_a_script_imports_first_stay(tmp_path):
    import_script(write(tmp_path, "script.py", "import wave\n"))
    assert "wave" in sys.modules
    assert not any(name == "olive" or name.startswith("olive.") for name in sys.modules)


def test_functions_that_do_not_exist(tmp_path):
    script = import_script(write(tmp_path, "script.py", "def loader():\n    pass\n"))
    with pytest.raises(InvalidRecipe, match="did you mean 'loader'"):
        script.function("loadr")
    with pytest.raises(InvalidRecipe, match="there is no Python file"):
        import_script(tmp_path / "absent.py")


def test_a_missing_package_says_how_to_get_it(tmp_path):
    with pytest.raises(RunFailed, match=r"ModuleNotFoundError on import[\s\S]*pip install no_such_package"):
        import_script(write(tmp_path, "script.py", "import no_such_package\n"))
