import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.errors import ModelUnavailable, RunFailed
from runner.models.handle import ModelHandle
from runner.models.torch_source import load_torch
from runner.models.twin import architecture_of
from runner.passes.declaration import PassContext
from runner.passes.export.import_ctranslate2 import PASS, ImportCtranslate2Options
from runner.passes.export.tiny_twin import make_twin
from runner.targets.target import TARGETS

TASK = "automatic-speech-recognition"
PARTS = {
    "self_attn_layer_norm": "self_attention/layer_norm",
    "encoder_attn_layer_norm": "attention/layer_norm",
    "final_layer_norm": "ffn/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "encoder_attn.out_proj": "attention/linear_2",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}
JOINED = {
    "self_attention/linear_0": ("self_attn", "qkv"),
    "attention/linear_0": ("encoder_attn", "q"),
    "attention/linear_1": ("encoder_attn", "kv"),
}


def variables_of(source: ModelHandle, folder: Path) -> dict[str, np.ndarray]:
    """A Whisper's weights under CTranslate2's names."""
    state = {name.removeprefix("model."): value.numpy() for name, value in load_torch(source).state_dict().items()}
    config = json.loads((folder / "config.json").read_text())
    found = {
        "decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
        "encoder/num_heads": np.int16(config["encoder_attention_heads"]).reshape(()),
    }
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/{part}": state[f"encoder.{name}.{part}"] for part in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        found |= norm(state, f"{side}.layer_norm", f"{side}/layer_norm")
        for number in range(config[f"{side}_layers"]):
            ours, theirs = f"{side}.layers.{number}", f"{side}/layer_{number}"
            for one, other in PARTS.items():
                if f"{ours}.{one}.weight" not in state:
                    continue
                if one.endswith("norm"):
                    found |= norm(state, f"{ours}.{one}", f"{theirs}/{other}")
                else:
                    found |= {f"{theirs}/{other}/{part}": state[f"{ours}.{one}.{part}"] for part in ("weight", "bias")}
            for other, (attention, letters) in JOINED.items():
                if f"{ours}.{attention}.q_proj.weight" in state:
                    found |= joined(state, f"{ours}.{attention}", letters, f"{theirs}/{other}")
    return found


def norm(state: dict[str, np.ndarray], ours: str, theirs: str) -> dict[str, np.ndarray]:
    return {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}


def joined(state: dict[str, np.ndarray], ours: str, letters: str, theirs: str) -> dict[str, np.ndarray]:
    weights = [state[f"{ours}.{letter}_proj.weight"] for letter in letters]
    biases = [
        state.get(f"{ours}.{letter}_proj.bias", np.zeros(len(weight), np.float32))
        for letter, weight in zip(letters, weights, strict=True)
    ]
    return {f"{theirs}/weight": np.concatenate(weights), f"{theirs}/bias": np.concatenate(biases)}


def packed(specification: str, variables: dict[str, np.ndarray]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    kinds = ["float32", "int8", "int16", "int32", "float16"]
    head = struct.pack("<I", 6) + text(specification) + struct.pack("<II", 3, len(variables))
    return head + b"".join(
        text(name)
        + struct.pack(f"<B{array.ndim}IBI", array.ndim, *array.shape, kinds.index(str(array.dtype)), array.nbytes)
        + array.tobytes()
        for name, array in variables.items()
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return make_twin(architecture_of("openai/whisper-tiny"), TASK, tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def ct2(source: ModelHandle, tmp_path: Path) -> ModelHandle:
    folder = tmp_path / "ct2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(packed("WhisperSpec", variables_of(source, source.folder)))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1], "suppress_ids_begin": [2], "lang_ids": [3]}))
    (folder / "tokenizer.json").write_bytes((source.folder / "tokenizer.json").read_bytes())
    return ModelHandle("ct2", folder, "model.bin", TASK)


def imported(model: ModelHandle, tmp_path: Path) -> ModelHandle:
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    context = PassContext(output, scratch, TARGETS["cpu"], 1, lambda name: iter(()), lambda text: None)
    return PASS.apply(model, ImportCtranslate2Options(), context)


def test_weights_and_tokens_are_those_of_the_model(source: ModelHandle, ct2: ModelHandle, tmp_path: Path) -> None:
    from transformers import WhisperProcessor

    made = imported(ct2, tmp_path)
    assert made.kind == "hf"
    assert made.task == TASK
    theirs, ours = load_torch(source).state_dict(), load_torch(made).state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    tokenizer = WhisperProcessor.from_pretrained(made.folder).tokenizer
    wanted = json.loads((ct2.folder / "tokenizer.json").read_text())["added_tokens"]
    assert [tokenizer.convert_tokens_to_ids(token["content"]) for token in wanted] == [token["id"] for token in wanted]


@pytest.mark.parametrize(("rows", "multilingual"), [(656, True), (51864, False)])
def test_a_vocabulary_for_english_only_has_no_languages(
    source: ModelHandle, ct2: ModelHandle, tmp_path: Path, rows: int, multilingual: bool
) -> None:
    variables = variables_of(source, source.folder)
    known = variables["decoder/embeddings/weight"]
    variables["decoder/embeddings/weight"] = np.pad(known, ((0, rows - len(known)), (0, 0)))
    ct2.path.write_bytes(packed("WhisperSpec", variables))
    (ct2.folder / "config.json").write_text(json.dumps({"lang_ids": [2, 3, 4]}))  # listed in either case
    told = json.loads((imported(ct2, tmp_path).folder / "generation_config.json").read_text())
    assert told["is_multilingual"] is multilingual
    assert ("lang_to_id" in told) is multilingual


def test_a_truncated_file_is_one_error(ct2: ModelHandle, tmp_path: Path) -> None:
    whole = ct2.path.read_bytes()
    ct2.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelUnavailable, match="no whole CTranslate2 model"):
        imported(ct2, tmp_path)


def test_another_kind_of_model_is_refused(ct2: ModelHandle, tmp_path: Path) -> None:
    ct2.path.write_bytes(packed("TransformerDecoderModelSpec", {}))
    with pytest.raises(RunFailed, match="TransformerDecoderModelSpec is not read"):
        imported(ct2, tmp_path)


def test_quantised_weights_are_refused_by_name(source: ModelHandle, ct2: ModelHandle, tmp_path: Path) -> None:
    variables = variables_of(source, source.folder)
    variables["encoder/conv1/weight"] = variables["encoder/conv1/weight"].astype(np.int8)
    ct2.path.write_bytes(packed("WhisperSpec", variables))
    with pytest.raises(ModelUnavailable, match="'encoder/conv1/weight' is stored as int8"):
        imported(ct2, tmp_path)
