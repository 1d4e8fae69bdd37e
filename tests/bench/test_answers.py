"""Answers of models of pictures and texts: what is compared of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runner.bench.answers import compare
from runner.bench.inputs_record import Inputs


def test_embeddings_of_pictures_and_texts_are_compared_and_the_choice_is_the_logits(tmp_path: Path) -> None:
    feed, theirs, ours = (tmp_path / f"{name}.npz" for name in ("feed", "theirs", "ours"))
    logits = np.asarray([[100.0, 101.0], [101.0, 100.0]])
    pictures, texts = np.eye(2), np.asarray([[1.0, 0.0], [0.6, 0.8]])
    np.savez(feed, pixel_values=np.zeros((2, 3, 2, 2)))
    np.savez(theirs, logits_per_image=logits, image_embeds=pictures, text_embeds=texts)
    np.savez(ours, logits_per_image=logits[::-1], image_embeds=pictures, text_embeds=texts[::-1])
    inputs = Inputs(answers=(str(feed),), truth=(1, 0))
    found = {one.name: one for one in compare("zero-shot-image-classification", inputs, [theirs], [ours])}
    assert found["cosine"].samples == pytest.approx((1, 1, 0.6, 0.6))
    assert found["cosine_min"].value == pytest.approx(0.6)
    assert found["agreement"].value == 0
