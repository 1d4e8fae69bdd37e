"""What the files of a model folder say of its inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, CLIPConfig, PretrainedConfig, SiglipConfig

from runner.models.inputs import sequence_length


@pytest.mark.parametrize(("config", "longest"), [(CLIPConfig(), 77), (SiglipConfig(), 64), (BertConfig(), 128)])
def test_a_length_that_transformers_leaves_out_of_the_file_is_known(
    tmp_path: Path, config: PretrainedConfig, longest: int
) -> None:
    config.save_pretrained(tmp_path)
    assert sequence_length(tmp_path, 128) == longest
