"""Small random models that all tests share, made once a session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.models.handle import ModelHandle

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the processes that tests start compiles the runner again
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would its children

WORDS = (
    "the", "a", "cat", "dog", "sat", "on", "mat", "ran", "over", "hill", "and", "then", "it", "was", "very", "happy", "sad",
    "with", "its", "small", "red", "ball", "near", "old", "house", "by", "river", "under", "green", "tree",
)  # fmt: skip


def write_tokenizer(folder: Path) -> int:
    """Writes a word tokenizer into a folder; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: at for at, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    fast.save_pretrained(folder)
    return len(vocabulary)


def bert_config(vocabulary: int) -> Any:
    """Returns the configuration of a BERT with two narrow layers."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A BERT for sentence embeddings, with its tokenizer."""
    return _bert(tmp_path_factory.mktemp("bert"), "BertModel", "feature-extraction")


@pytest.fixture(scope="session")
def tiny_masked_bert(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A BERT that fills masks."""
    return _bert(tmp_path_factory.mktemp("masked-bert"), "BertForMaskedLM", "fill-mask")


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A BERT with three classes."""
    return _bert(tmp_path_factory.mktemp("classifier"), "BertForSequenceClassification", "text-classification")


def _bert(folder: Path, architecture: str, task: str) -> ModelHandle:
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, architecture)(bert_config(write_tokenizer(folder)))
    model.save_pretrained(folder)
    return ModelHandle("hf", folder, None, task, {"model_type": "bert", "architecture": architecture})


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A Llama with two narrow layers, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=write_tokenizer(folder), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return ModelHandle("hf", folder, None, "text-generation", {"model_type": "llama", "architecture": "LlamaForCausalLM"})


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """A ResNet with two narrow stages and five classes, and its image processor."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5, image_size=32
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)
    return ModelHandle("hf", folder, None, "image-classification", {"model_type": "resnet"})


ApplyPass = Callable[..., ModelHandle]


@pytest.fixture
def apply_pass(tmp_path: Path) -> Iterator[ApplyPass]:
    """Applies a pass by name to a handle, as the engine does; keyword arguments are its options, `data` its batches."""
    from runner.passes import table
    from runner.passes.declaration import PassContext
    from runner.targets.target import TARGETS

    said: list[str] = []

    def apply(
        name: str,
        model: ModelHandle,
        *,
        data: Any = None,
        target: str = "cpu",
        memory: int | None = None,
        outlasts: Callable[[Path], bool] | None = None,
        **options: Any,
    ) -> ModelHandle:
        pass_ = table.get(name)
        number = sum(1 for _ in tmp_path.glob("step-*"))
        output, scratch = tmp_path / f"step-{number}", tmp_path / f"scratch-{number}"
        output.mkdir()
        scratch.mkdir()
        context = PassContext(
            output, scratch, TARGETS[target], 2, lambda _: data, said.append, memory=memory, outlasts=outlasts
        )
        return pass_.apply(model, pass_.options.model_validate(options), context)

    apply.said = said  # type: ignore[attr-defined]
    yield apply


@pytest.fixture(scope="session")
def exported_bert(tiny_bert: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """The tiny BERT as an ONNX graph with fused Attention (opset 23)."""
    return _exported(tiny_bert, tmp_path_factory.mktemp("onnx-bert"))


@pytest.fixture(scope="session")
def traced_bert(tiny_bert: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """The tiny BERT by the tracing exporter (opset 17), whose attention ONNX Runtime's fusions know."""
    return _exported(tiny_bert, tmp_path_factory.mktemp("traced-bert"), use_dynamo_exporter=False)


@pytest.fixture(scope="session")
def exported_resnet(tiny_resnet: ModelHandle, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """The tiny ResNet as an ONNX graph."""
    return _exported(tiny_resnet, tmp_path_factory.mktemp("onnx-resnet"))


def _exported(model: ModelHandle, folder: Path, **options: Any) -> ModelHandle:
    from runner.passes import table
    from runner.passes.declaration import PassContext
    from runner.targets.target import TARGETS

    pass_ = table.get("OnnxConversion")
    context = PassContext(folder, folder, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return pass_.apply(model, pass_.options.model_validate(options), context)
