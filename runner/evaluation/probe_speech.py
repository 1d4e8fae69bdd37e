"""Runs a speech model of two graphs, as onnxruntime-genai's builder makes them, on given sound and first tokens, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.models.handle import ModelHandle
from runner.models.inputs import read_facts
from runner.models.sound_windows import SAMPLE_RATE
from runner.models.transcription import TranscriptionSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

TASK = "automatic-speech-recognition"
FRAMES = 3000  # of 10 ms: the half minute that Whisper hears at once
_STEPS = 8
_SEED = 7


def speech_inputs(folder: Path) -> Arrays:
    """Returns noise as `input_features` [1, mels, 3000] and the first tokens of an answer as `decoder_input_ids` [1, 8]."""
    random = np.random.default_rng(_SEED)
    facts = read_facts(folder)
    features = random.standard_normal((1, int(facts.get("num_mel_bins") or 80), FRAMES)).astype(np.float32)
    tokens = random.integers(0, int(facts.get("vocab_size") or 1000), (1, _STEPS))
    tokens[0, 0] = facts.get("decoder_start_token_id") or 0
    return {"input_features": features, "decoder_input_ids": tokens.astype(np.int64)}


def speech_outputs(model: ModelHandle, parts: Mapping[str, Any], inputs: Mapping[str, NDArray[Any]], threads: int) -> Arrays:
    """Returns the `logits` [1, tokens, vocabulary], what the encoder heard, and what is written for a second of noise.

    The last, `generated`, has a true for each token that onnxruntime-genai writes [1, up to 8].

    Args:
        model: a genai folder of an encoder and a decoder.
        parts: the `model` section of its genai_config.json.
        inputs: those of `speech_inputs`.
        threads: threads to compute with.

    Raises:
        NoProbe: a kernel is missing on the CPU, or an input is not known.
        RunFailed: a graph does not load or run.
    """
    from runner.evaluation.probe_outputs import graph_outputs, graph_shapes, open_graph

    encoder = open_graph(replace(model, kind="onnx", file=parts["encoder"]["filename"]), threads)
    heard = graph_outputs(encoder, {"audio_features": inputs["input_features"]}, every=True)
    decoder = open_graph(replace(model, kind="onnx", file=parts["decoder"]["filename"]), threads)
    given: Arrays = {"input_ids": inputs["decoder_input_ids"]}
    for name, shape in graph_shapes(decoder).items():
        if "cross" in name:
            given[name] = heard[name.replace("past_", "present_")]
        elif name.startswith("past"):
            given[name] = np.zeros([axis if isinstance(axis, int) else 1 if at == 0 else 0 for at, axis in enumerate(shape)])
    logits = graph_outputs(decoder, given)["logits"]
    noise = np.random.default_rng(_SEED).standard_normal(SAMPLE_RATE).astype(np.float32) / 10
    written = TranscriptionSession(model.folder, threads, on_cpu=True).tokens(noise, _STEPS)
    generated: NDArray[Any] = np.ones((1, len(written)), np.bool_)
    return {"logits": logits, "encoder_last_hidden_state": heard["hidden_states"], "generated": generated}
