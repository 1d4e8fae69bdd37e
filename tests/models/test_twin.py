import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import InvalidRecipe, ModelUnavailable
from runner.models.twin import KNOWN, architecture_of, task_of
from runner.models.twin_shrink import shrink
from runner.models.twin_tokenizer import train_tokenizer
from runner.passes.export.tiny_twin import make_twin


def tiny(model_id: str) -> dict:
    twin = architecture_of(model_id)
    return shrink(twin.model_type, twin.facts)


@pytest.mark.parametrize(
    ("model_id", "model_type", "task"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", "text-generation"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama", "text-generation"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama", "text-generation"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama", "text-generation"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama", "text-generation"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", "text-generation"),
        ("Qwen/Qwen1.5-7B-Chat", "qwen2", "text-generation"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", "text-generation"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "qwen2", "text-generation"),
        ("Qwen/Qwen3-0.6B", "qwen3", "text-generation"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi3", "text-generation"),
        ("microsoft/Phi-4-mini-reasoning", "phi3", "text-generation"),
        ("microsoft/phi-4", "phi3", "text-generation"),
        ("google/gemma-2-2b-it", "gemma2", "text-generation"),
        ("google/gemma-3-1b-it", "gemma3_text", "text-generation"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral", "text-generation"),
        ("baidu/ERNIE-4.5-0.3B-PT", "ernie4_5", "text-generation"),
        ("openai/gpt-oss-20b", "gpt_oss", "text-generation"),
        ("openai/clip-vit-large-patch14", "clip", "zero-shot-image-classification"),
        ("google-bert/bert-base-uncased", "bert", "fill-mask"),
        ("Intel/bert-base-uncased-mrpc", "bert", "text-classification"),
        ("sentence-transformers/all-MiniLM-L6-v2", "bert", "feature-extraction"),
        ("FacebookAI/roberta-base", "roberta", "fill-mask"),
        ("distilbert/distilbert-base-uncased-finetuned-sst-2-english", "distilbert", "text-classification"),
        ("microsoft/resnet-50", "resnet", "image-classification"),
        ("google/vit-base-patch16-224", "vit", "image-classification"),
        ("facebook/dinov2-small", "dinov2", "image-feature-extraction"),
    ],
)
def test_known_ids(model_id: str, model_type: str, task: str):
    twin = architecture_of(model_id)
    assert (twin.model_type, twin.task) == (model_type, task)


def test_an_id_of_another_owner_is_known_by_its_name():
    assert architecture_of("unsloth/Llama-3.2-1B-Instruct").model_type == "llama"


def test_unknown_id_names_the_nearest_pattern():
    with pytest.raises(InvalidRecipe) as caught:
        architecture_of("microsoft/rasnet-50")
    assert caught.value.problems[0].rule == "no-tiny-twin"
    assert "microsoft/resnet-" in caught.value.problems[0].remedy


@pytest.mark.parametrize(
    ("model_id", "model_type"),
    [
        ("Qwen/Qwen3-77B", "qwen3"),
        ("LiquidAI/LFM2.5-230M", "lfm2"),
        ("nvidia/Llama-3.1-Nemotron-Nano-8B-v1", "llama"),
        ("somebody/my-whisper-finetune", "whisper"),
        ("<MODEL_PATH>", "llama"),
        ("./models/phi-3-mini-finetuned", "phi3"),
    ],
)
def test_a_family_stands_in_for_an_unknown_id(model_id: str, model_type: str):
    twin = architecture_of(model_id)
    assert (twin.model_type, twin.stands_in) == (model_type, True)
    assert not architecture_of(twin.pattern.replace("*", "x")).stands_in


def test_every_decoder_keeps_its_head_groups_and_fits_block_quantisation():
    for twin in KNOWN:
        if twin.task != "text-generation" or "num_key_value_heads" not in twin.facts:
            continue
        small = shrink(twin.model_type, twin.facts)
        group = twin.facts["num_attention_heads"] // twin.facts["num_key_value_heads"]
        assert small["num_attention_heads"] // small["num_key_value_heads"] == group, twin.pattern
        assert small["hidden_size"] % 64 == small["intermediate_size"] % 64 == 0, twin.pattern
        assert small["num_hidden_layers"] == 2
        assert small["tie_word_embeddings"] == twin.facts["tie_word_embeddings"]


def test_phi_4_mini_keeps_partial_long_rotation():
    small = tiny("microsoft/Phi-4-mini-instruct")
    rotated = 64 * 0.75
    assert small["partial_rotary_factor"] == 0.75
    assert len(small["rope_scaling"]["short_factor"]) == len(small["rope_scaling"]["long_factor"]) == rotated / 2
    assert small["original_max_position_embeddings"] < small["max_position_embeddings"]


def test_what_a_model_of_text_and_images_keeps():
    small = tiny("Qwen/Qwen3.5-2B")["text_config"]
    assert small["layer_types"] == ["linear_attention", "full_attention"]
    assert sum(small["rope_parameters"]["mrope_section"]) * 2 == 64 * 0.25
    assert small["linear_num_value_heads"] == small["linear_num_key_heads"]
    wide = tiny("Qwen/Qwen3.5-27B")["text_config"]
    assert wide["linear_num_value_heads"] == 3 * wide["linear_num_key_heads"]
    assert tiny("Qwen/Qwen3-VL-4B-Instruct")["vision_config"]["deepstack_visual_indexes"] == [1]


def test_windows():
    assert tiny("mistralai/Mistral-7B-Instruct-v0.1")["sliding_window"] == 64
    assert tiny("microsoft/Phi-3.5-mini-instruct")["sliding_window"] == 4096, "a window as long as the context stays inert"
    assert tiny("google/gemma-3-1b-it")["layer_types"] == ["sliding_attention", "full_attention"]


def test_planning_imports_no_ml_library():
    code = (
        "import sys; from runner.models.twin import architecture_of; architecture_of('Qwen/Qwen3-0.6B'); "
        "print([name for name in ('torch', 'transformers', 'numpy', 'onnx', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "model_id",
    [
        "meta-llama/Llama-3.2-1B-Instruct",
        "microsoft/Phi-3-mini-4k-instruct",
        "sentence-transformers/all-MiniLM-L6-v2",
        "FacebookAI/roberta-base",
    ],
)
def test_tokenizer_writes_and_reads_text(model_id: str, tmp_path: Path):
    from transformers import AutoTokenizer

    vocabulary = architecture_of(model_id).vocabulary
    train_tokenizer(vocabulary).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "the sky is blue, 42 times over"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).replace(" ,", ",") == text
    assert len(ids) < len(text)
    for role, token in vocabulary.roles.items():
        assert getattr(tokenizer, role) == token
    if vocabulary.style == "wordpiece":
        pair = tokenizer("the sky", "is blue")
        assert pair["token_type_ids"][0] == 0
        assert pair["token_type_ids"][-1] == 1


def test_twin_is_the_same_bytes_every_time(tmp_path: Path):
    twin = architecture_of("HuggingFaceTB/SmolLM2-135M-Instruct")
    digests = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        make_twin(twin, twin.task, folder)
        files = [(folder / file).read_bytes() for file in ("model.safetensors", "tokenizer.json", "config.json")]
        digests.add(tuple(hashlib.sha256(content).hexdigest() for content in files))
    assert len(digests) == 1


def test_a_folder_is_shrunk_from_its_own_config(tmp_path: Path):
    original = architecture_of("Qwen/Qwen2.5-0.5B-Instruct")
    first = make_twin(original, "text-generation", tmp_path / "first")
    again = architecture_of(first.folder)
    second = make_twin(again, again.task, tmp_path / "second")
    one, two = (json.loads((handle.folder / "config.json").read_text()) for handle in (first, second))
    assert one == two
    assert again.vocabulary.template == original.vocabulary.template
    assert again.vocabulary.special == original.vocabulary.special


def test_a_folder_without_model_type_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="model_type"):
        architecture_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        architecture_of(tmp_path)


@pytest.mark.parametrize("model_id", ["google/vit-base-patch16-224", "microsoft/resnet-50"])
def test_image_twins_classify_at_the_real_size(model_id: str, tmp_path: Path):
    import torch
    from transformers import AutoModelForImageClassification

    twin = architecture_of(model_id)
    make_twin(twin, twin.task, tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    logits = model(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))).logits
    assert logits.shape == (2, 1000)
    assert torch.isfinite(logits).all()
    assert 0.05 < float(logits.detach().std()) < 50
    assert (tmp_path / "preprocessor_config.json").is_file()


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "text-generation"),
        ({"architectures": ["MBartForConditionalGeneration"]}, "text2text-generation"),
        ({"architectures": ["MarianMTModel"]}, "text2text-generation"),
        ({"architectures": ["ProphetNetForConditionalGeneration"]}, "text2text-generation"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, "image-text-to-text"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, "automatic-speech-recognition"),
        ({"model_type": "vit"}, "image-feature-extraction"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "feature-extraction"),
    ],
)
def test_the_task_of_an_architecture(config: dict[str, object], task: str) -> None:
    assert task_of(config) == task
