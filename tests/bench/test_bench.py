"""Benchmarks of real, tiny pairs: what is measured, how it is judged, and what is told when it cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.bench.bench import Contest, bench
from runner.bench.inputs_record import Sizes
from runner.bench.results import Ratio, Results, Row, Side, judge, read_results
from runner.bench.scenarios import GRID_NEW_TOKENS
from runner.errors import InvalidRecipe, RecipeError
from runner.evaluation.torch_form import TorchForm
from runner.models.handle import ModelHandle
from runner.models.twin import architecture_of
from runner.passes import table
from runner.passes.declaration import PassContext
from runner.passes.export.tiny_twin import make_twin
from runner.recipe.info import Evaluation, Gate
from runner.targets.target import TARGETS

SENTENCES = (
    "the cat sat on the mat",
    "a dog ran over the hill and then it was very happy",
    "red ball",
    "the old house by the river was sad",
    "a small green tree near the hill",
    "the happy dog and the sad cat sat under the old tree with its ball",
)


def made(name: str, model: ModelHandle, folder: Path, **options: Any) -> ModelHandle:
    """Applies a pass outside of the engine."""
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    pass_ = table.get(name)
    context = PassContext(output, scratch, TARGETS["cpu"], 2, lambda _: iter(()), lambda _: None)
    return pass_.apply(model, pass_.options.model_validate(options), context)


def contest(source: ModelHandle, output: ModelHandle, folder: Path, **changes: Any) -> Contest:
    (folder / "sentences.txt").write_text("\n".join(SENTENCES))
    plain = Contest(
        output=output, source=source, recipe="tiny", variant="cpu-fp32", model_id="nobody/tiny",
        evaluation=Evaluation(sentences="sentences.txt"), gates={}, folder=folder, target=TARGETS["cpu"], threads=2,
        rounds=2, turn_seconds=0.02,
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def embedder(tiny_bert, exported_bert, tmp_path_factory) -> Results:
    gates = {"cosine": ">= 0.999", "latency": "<= 0.000001x", "size": "<= 100x"}
    return bench(contest(tiny_bert, exported_bert, tmp_path_factory.mktemp("embedder"), gates=gates))


def test_embeddings_are_timed_compared_and_weighed(embedder):
    assert [row.name for row in embedder.rows] == [
        "latency", "throughput", "cosine", "cosine_min", "size", "load", "peak_rss"
    ]  # fmt: skip
    latency = embedder.row("latency")
    assert latency is not None
    assert latency.about == "1 x 64 tokens"  # the tokenizer's own limit
    assert latency.baseline is not None
    assert latency.ratio is not None
    assert len(latency.baseline.samples) == len(latency.optimised.samples) == embedder.rounds == 2
    assert latency.ratio.low <= latency.ratio.value <= latency.ratio.high
    cosine = embedder.row("cosine")
    assert cosine is not None
    assert cosine.optimised.value > 0.9999
    assert len(cosine.optimised.samples) == len(SENTENCES)
    assert cosine.baseline is None


def test_embeddings_are_timed_by_batch_and_length(embedder):
    assert [(cell.batch, cell.length) for cell in embedder.grid] == [(1, 16), (8, 16), (1, 64), (8, 64)]
    assert {cell.unit for cell in embedder.grid} == {embedder.row("throughput").unit} == {"embeddings/s"}
    assert all(cell.optimised.value > 0 and len(cell.optimised.samples) == embedder.rounds for cell in embedder.grid)


def test_similarities_are_held_against_what_people_say(tiny_bert, exported_bert, tmp_path):
    pairs = ("red ball,red ball,5", "red ball,the sad cat,1", "the sad cat,a sad dog,4", "the hill,it was happy,0")
    (tmp_path / "pairs.csv").write_text("\n".join(pairs))
    evaluation = Evaluation(sentences="sentences.txt", pairs="pairs.csv")
    sizes, gates = Sizes((2,), (12,)), {"spearman": ">= 0.99x"}
    asked = contest(tiny_bert, exported_bert, tmp_path, evaluation=evaluation, rounds=1, sizes=sizes, gates=gates)
    results = bench(asked)
    assert [(cell.batch, cell.length) for cell in results.grid] == [(2, 12)]
    spearman = results.row("spearman")
    assert spearman.optimised.value == pytest.approx(spearman.baseline.value)
    assert "on 4 pairs; 1.0000 with the baseline's" in spearman.about
    assert results.gate("spearman").met == (spearman.baseline.value > 0)


@pytest.mark.parametrize(("length", "cause"), [(65, "more than the 64"), (2, "3 tokens at least")])
def test_lengths_that_the_model_does_not_take(tiny_bert, exported_bert, tmp_path, length, cause):
    with pytest.raises(RecipeError, match=cause):
        bench(contest(tiny_bert, exported_bert, tmp_path, sizes=Sizes((), (length,))))


def test_gates_are_judged_by_ratio_or_by_value(embedder):
    assert {gate.metric: gate.met for gate in embedder.gates} == {"cosine": True, "latency": False, "size": True}
    assert "<= 1e-06x" in str(embedder.gate("latency"))


def test_results_survive_their_file_and_name_no_place(embedder, tmp_path):
    path = tmp_path / "results" / embedder.file_name
    embedder.write(path)
    assert read_results(path) == embedder
    text = path.read_text()
    assert str(Path.home()) not in text
    assert "/tmp" not in text


def test_masked_words_are_compared_where_the_mask_stands(tiny_masked_bert, tmp_path):
    output = made("OnnxConversion", tiny_masked_bert, tmp_path)
    results = bench(contest(tiny_masked_bert, output, tmp_path, rounds=1))
    agreement = results.row("agreement")
    assert agreement is not None
    assert agreement.optimised.value == 1.0
    assert len(agreement.optimised.samples) == len(SENTENCES)


def test_images_are_classified_by_both_sides(tiny_resnet, exported_resnet, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for at in range(3):
        Image.effect_noise((40, 40), 60 + at).convert("RGB").save(tmp_path / "images" / f"{at}.png")
    results = bench(contest(tiny_resnet, exported_resnet, tmp_path, evaluation=Evaluation(images="images"), rounds=1))
    assert results.row("agreement").optimised.value == 1.0
    assert results.row("cosine").optimised.value > 0.9999
    assert results.row("latency").about == "1 x 32x32 pixels"
    assert [(cell.batch, cell.length, cell.unit) for cell in results.grid] == [(n, None, "images/s") for n in (1, 4, 8, 16)]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> tuple[ModelHandle, ModelHandle]:
    """A tiny chat model and its fp32 graph with a pruned head."""
    folder = tmp_path_factory.mktemp("chat")
    twin = architecture_of("meta-llama/Llama-3.2-1B-Instruct")
    source = make_twin(twin, twin.task, folder / "source")
    return source, made("ModelBuilder", source, folder, precision="fp32", prune_lm_head=True)


def test_a_chat_model_is_timed_by_token_and_scored_although_its_head_is_pruned(chat, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES * 40))
    evaluation = Evaluation(text="text.txt", windows=2, window_tokens=64)
    results = bench(contest(*chat, tmp_path, evaluation=evaluation, gates={"perplexity": "<= 1.01x"}, rounds=1))
    assert [row.name for row in results.rows] == ["decode", "ttft", "perplexity", "size", "load", "peak_rss"]
    perplexity = results.row("perplexity")
    assert perplexity is not None
    assert perplexity.ratio is not None
    assert perplexity.ratio.value == pytest.approx(1, abs=1e-3)
    assert results.gate("perplexity").met
    assert results.row("decode").optimised.value > 0


def test_other_forms_of_the_original_and_batches_of_prompts(chat, tmp_path):
    forms = (TorchForm.parse("fp32"), TorchForm.parse("bf16"))
    results = bench(
        contest(*chat, tmp_path, evaluation=Evaluation(), baselines=forms, rounds=1, sizes=Sizes((1, 3), (8, 5000)))
    )
    assert results.baseline == "PyTorch fp32"
    assert [peer.form for row in results.rows for peer in row.peers] == ["PyTorch bf16"] * 2  # decode and first token
    assert [(cell.figure, cell.batch, cell.length) for cell in results.grid] == [
        ("prefill", 1, 8), ("decode", 1, 8), ("prefill", 3, 8), ("decode", 3, 8)
    ]  # fmt: skip
    assert [cell.new_tokens for cell in results.grid] == [None, GRID_NEW_TOKENS] * 2
    assert sum("5000 tokens: not measured" in note for note in results.notes) == 2  # its context is shorter


def test_random_weights_are_timed_and_not_judged(chat, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES * 40))
    evaluation = Evaluation(text="text.txt", windows=2, window_tokens=64)
    asked = contest(*chat, tmp_path, evaluation=evaluation, gates={"perplexity": "<= 1.01x"}, random_weights=True, rounds=1)
    results = bench(asked)
    assert results.weights == "random"
    assert results.row("perplexity") is None
    assert results.gates == ()
    assert any("nothing of quality" in note for note in results.notes)


def test_a_form_that_does_not_exist_is_told():
    with pytest.raises(RecipeError, match="runs no model as 'fp17'"):
        TorchForm.parse("fp17")


def test_without_a_text_a_chat_model_is_timed_and_the_lack_is_noted(chat, tmp_path):
    results = bench(contest(*chat, tmp_path, evaluation=Evaluation(), gates={"perplexity": "<= 1.01x"}, rounds=1))
    assert results.row("perplexity") is None
    assert any("evaluation.text" in note for note in results.notes)
    assert not results.gate("perplexity").met
    assert "not measured" in str(results.gate("perplexity"))


def test_a_smoke_benchmark_judges_nothing_and_its_progress_ends_where_it_said(tiny_bert, exported_bert, tmp_path):
    seen: list[tuple[int, int]] = []
    asked = contest(tiny_bert, exported_bert, tmp_path, gates={"latency": "<= 0.000001x"}, smoke=True, rounds=1)
    results = bench(asked, lambda _, done, total: seen.append((done, total)))
    assert results.gates == ()
    assert any("tiny random-weight" in note for note in results.notes)
    assert [done for done, _ in seen] == list(range(len(seen)))
    assert {total for _, total in seen[1:]} == {len(seen)}  # the sizes are known once the inputs are prepared


def test_a_gate_on_nothing_is_told_with_the_nearest_figure(tiny_bert, exported_bert, tmp_path):
    with pytest.raises(InvalidRecipe, match="did you mean 'perplexity'"):
        bench(contest(tiny_bert, exported_bert, tmp_path, gates={"perplexty": "<= 1.05x"}))


def test_missing_evaluation_data_is_told(chat, tmp_path):
    with pytest.raises(RecipeError, match=r"evaluation data 'nowhere\.txt' cannot be read"):
        bench(contest(*chat, tmp_path, evaluation=Evaluation(text="nowhere.txt")))


def test_a_broken_model_is_told_with_its_side_and_log(tiny_bert, exported_bert, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    broken = ModelHandle("onnx", tmp_path, "model.onnx", tiny_bert.task)
    with pytest.raises(RecipeError) as caught:
        bench(contest(tiny_bert, broken, tmp_path, log=tmp_path / "bench.log"))
    assert "model.onnx" in str(caught.value)
    assert str(tmp_path / "bench.log") in str(caught.value)


def test_a_ratio_is_the_median_of_rounds_and_shrugs_off_one_disturbed_round():
    ratio = Ratio.of_rounds((100.0, 100.0, 1000.0), (50.0, 52.0, 51.0))
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.051, 0.52)


def test_an_absolute_gate_looks_at_the_optimised_side():
    row = Row(name="latency", unit="ms", higher_is_better=False, about="", baseline=Side(value=9), optimised=Side(value=3))
    assert judge(Gate.parse("latency", "<= 4"), (row,)).met
    assert not judge(Gate.parse("latency", "<= 2"), (row,)).met
    assert not judge(Gate.parse("latency", "<= 2x"), (row,)).met  # there is no ratio


def test_a_damaged_results_file_is_an_invalid_recipe(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InvalidRecipe, match="not a results file"):
        read_results(tmp_path / "x.json")
