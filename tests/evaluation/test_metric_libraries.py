"""Accuracy by torchmetrics, scikit-learn and evaluate, and metrics that a script brings."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from runner.errors import DataUnavailable, InvalidRecipe, NotTrusted, RunFailed
from runner.evaluation.evaluate import evaluate
from runner.evaluation.metric_libraries import huggingface_metric, torch_metric, torch_perplexity
from runner.models.handle import ModelHandle
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.recipe.config import RunConfig, SubMetric
from runner.targets.target import TARGETS

LABELS = np.array([0, 1, 2, 2, 1, 0])
CHOSEN = np.array([0, 1, 2, 1, 1, 2])
MULTICLASS = {"task": "multiclass", "num_classes": 3}


def sub(name: str, **config: Any) -> SubMetric:
    return SubMetric(name=name, metric_config=config or None)


class TestTorchmetrics:
    def test_configured_by_the_recipe(self):
        assert torch_metric(sub("accuracy_score", **MULTICLASS), LABELS, CHOSEN, None).value == pytest.approx(4 / 6)
        macro = torch_metric(sub("recall", average="macro", **MULTICLASS), LABELS, CHOSEN, None)
        assert macro.value == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)

    def test_binary_unless_told_otherwise(self):
        scores = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5], [0.0, 0.1]])
        labels = np.array([0, 1, 0, 1])
        assert torch_metric(sub("f1_score"), labels, scores.argmax(1), None).value == pytest.approx(1.0)
        assert torch_metric(sub("auroc"), labels, scores.argmax(1), scores).value == pytest.approx(1.0)

    def test_word_error_rate_counts_words(self):
        found = torch_metric(sub("wer"), np.array(["a b c d"]), np.array(["a b x d"]), None)
        assert (found.value, found.higher_is_better) == (pytest.approx(0.25), False)

    def test_perplexity_leaves_padding_out(self):
        logits = np.log(np.full((1, 4, 5), 0.2, np.float32))
        found = torch_perplexity(sub("perplexity"), [(logits, np.array([[1, 2, 3, -100]]))])
        assert found.value == pytest.approx(5.0, rel=1e-5)
        assert "2 tokens" in str(found.note)

    @pytest.mark.parametrize(
        ("asked", "error", "told"),
        [
            (sub("accuracy_score", task="many"), InvalidRecipe, "metric_config of 'accuracy_score'"),
            (sub("accuracy_score"), DataUnavailable, "cannot compute 'accuracy_score'"),
            (sub("auroc", **MULTICLASS), DataUnavailable, "auroc needs scores"),
        ],
    )
    def test_what_does_not_fit_is_told(self, asked, error, told):
        with pytest.raises(error, match=told):
            torch_metric(asked, LABELS, CHOSEN, None)


class TestHuggingface:
    def test_scikit_learn_computes_what_the_metric_computes(self, tmp_path):
        found = huggingface_metric(sub("accuracy"), LABELS, CHOSEN, tmp_path, script_allowed=False)
        assert found.value == pytest.approx(4 / 6)
        assert "scikit-learn's accuracy_score" in str(found.note)
        macro = huggingface_metric(sub("f1", compute_params={"average": "macro"}), LABELS, CHOSEN, tmp_path, False)
        assert 0 < macro.value < 1

    def test_average_that_the_labels_need_is_told(self, tmp_path):
        with pytest.raises(DataUnavailable, match="'f1' cannot be computed"):
            huggingface_metric(sub("f1"), LABELS, CHOSEN, tmp_path, script_allowed=False)

    def test_script_beside_the_configuration(self, tmp_path):
        (tmp_path / "share.py").write_text(
            "import datasets\nimport evaluate\n"
            "class Share(evaluate.Metric):\n"
            "    def _info(self):\n"
            "        value = datasets.Value('int32')\n"
            "        return evaluate.MetricInfo(description='', citation='',\n"
            "            features=datasets.Features({'predictions': value, 'references': value}))\n"
            "    def _compute(self, predictions, references):\n"
            "        return {'deep': {'share': sum(a == b for a, b in zip(predictions, references)) / len(references)}}\n"
        )
        asked = sub("share.py", result_key="deep.share")
        assert huggingface_metric(asked, LABELS, CHOSEN, tmp_path, script_allowed=True).value == pytest.approx(4 / 6)
        with pytest.raises(DataUnavailable, match="gives no 'share'; it gives deep"):
            huggingface_metric(sub("share.py"), LABELS, CHOSEN, tmp_path, script_allowed=True)
        with pytest.raises(NotTrusted):
            huggingface_metric(asked, LABELS, CHOSEN, tmp_path, script_allowed=False)

    def test_metric_of_the_hub_without_network(self, tmp_path, monkeypatch):
        monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(DataUnavailable, match="'no_such_metric' of the evaluate package cannot be had"):
            huggingface_metric(sub("no_such_metric"), LABELS, CHOSEN, tmp_path, script_allowed=True)


SCRIPT = """
import torch
from olive.constants import Framework
from olive.evaluator import OliveEvaluator, MetricResult, SubMetricResult, flatten_metric_result
from olive.evaluator.registry import Registry
from olive.model import OliveModelHandler

def right(output, targets, scale=1):
    assert isinstance(output.preds, torch.Tensor) and output.logits.ndim == 2
    return {"share": (output.preds.argmax(-1) == targets).float().mean().item() * scale, "count": len(targets)}

def runs(model: OliveModelHandler, device, execution_providers, factor=1):
    session = model.prepare_session(inference_settings=None, device=device, execution_providers=execution_providers)
    ids = torch.ones(2, 5, dtype=torch.int64)
    inputs = {name: ids for name in ("input_ids", "attention_mask", "token_type_ids")}
    result = model.run_session(session, inputs)
    first = result[0] if model.framework == Framework.ONNX else result.logits
    return float(torch.as_tensor(first).shape[0]) * factor

def broken(model, device, execution_providers):
    return "many"

@Registry.register("Counting")
class Counting(OliveEvaluator):
    def evaluate(self, model, metrics, device, execution_providers):
        figures = {"inputs": SubMetricResult(value=self.start + 1, priority=1, higher_is_better=False)}
        return flatten_metric_result({"count": MetricResult.model_validate(figures)})
"""


@pytest.fixture(scope="module")
def exported_classifier(tiny_classifier, tmp_path_factory) -> ModelHandle:
    """The tiny classifier as an ONNX graph."""
    folder = tmp_path_factory.mktemp("onnx-classifier")
    conversion = table.get("OnnxConversion")
    context = PassContext(folder, folder, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return conversion.apply(tiny_classifier, conversion.options.model_validate({"use_dynamo_exporter": False}), context)


class TestScripts:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "user_script.py").write_text(SCRIPT)
        (tmp_path / "sentences.txt").write_text("the cat sat\na dog ran over\nred ball\n")
        (tmp_path / "labels.json").write_text(json.dumps([0, 1, 2]))
        return tmp_path

    def config(self, evaluator: dict[str, Any]) -> RunConfig:
        data = {
            "name": "labelled",
            "load_dataset_config": {"type": "sentences", "path": "sentences.txt", "labels": "labels.json"},
            "pre_process_data_config": {"type": "tokenize", "max_length": 16},
            "dataloader_config": {"batch_size": 2},
        }
        return RunConfig.model_validate(
            {"input_model": {"type": "HfModel"}, "evaluators": {"e": evaluator}, "evaluator": "e", "data_configs": [data]}
        )

    def custom(self, subs: list[str], **user: Any) -> RunConfig:
        metric = {
            "name": "mine", "type": "custom", "data_config": "labelled", "sub_types": [{"name": name} for name in subs],
            "user_config": {"user_script": "user_script.py", **user},
        }  # fmt: skip
        return self.config({"metrics": [metric]})

    def test_function_of_output_and_targets(self, folder, tiny_classifier, exported_classifier):
        asked = self.custom(["share", "count"], metric_func="right", metric_func_kwargs={"scale": 100})
        values = {
            one.name: one.value for one in evaluate(exported_classifier, tiny_classifier, asked, folder, 2, smoke=False).metrics
        }
        assert values["mine-count"] == values["source.mine-count"] == 3
        assert values["mine-share"] == pytest.approx(values["source.mine-share"])

    def test_function_of_the_model(self, folder, tiny_classifier, exported_classifier):
        asked = self.custom(["rows"], evaluate_func="runs", evaluate_func_kwargs={"factor": 10})
        found = evaluate(exported_classifier, tiny_classifier, asked, folder, 2, smoke=False)
        assert [(one.name, one.value) for one in found.metrics] == [("mine-rows", 20.0), ("source.mine-rows", 20.0)]

    @pytest.mark.parametrize(
        ("user", "told"),
        [({"evaluate_func": "broken"}, "returned a str"), ({"metric_func": "right"}, "returned share, count, and no 'rows'")],
    )
    def test_what_it_returns_must_be_figures(self, folder, tiny_classifier, user, told):
        with pytest.raises(RunFailed, match=told):
            evaluate(tiny_classifier, tiny_classifier, self.custom(["rows"], **user), folder, 2, smoke=False)

    def test_evaluator_that_the_script_registers(self, folder, tiny_classifier):
        asked = self.config({"type": "counting", "user_script": "user_script.py", "start": 4})
        found = evaluate(tiny_classifier, tiny_classifier, asked, folder, 2, smoke=False).metrics
        assert [(one.name, one.value, one.higher_is_better) for one in found] == [
            ("count-inputs", 5.0, False),
            ("source.count-inputs", 5.0, False),
        ]

    def test_untrusted_script_does_not_run(self, folder, tiny_classifier):
        asked = self.custom(["rows"], evaluate_func="runs")
        with pytest.raises(NotTrusted):
            evaluate(tiny_classifier, tiny_classifier, asked, folder, 2, smoke=False, script_allowed=False)
