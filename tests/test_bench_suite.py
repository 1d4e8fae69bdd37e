"""The suite against the peers, as far as it needs none of them."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runner.models.handle import ModelHandle

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Imports a module of the suite by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"performance.{name}")

    return load


def graph(folder: Path, factor: float) -> str:
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y"))
    weights = [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, path := folder / f"{factor}.onnx")
    return str(path)


def test_sides_take_turns_and_one_that_fails_is_named(part, tmp_path):
    contest = part("contest")
    here = Path(sys.executable)
    sides = [
        contest.Side(name, here, {"kind": "graphs", "paths": paths, "threads": 1, "config": {}})
        for name, paths in {
            "twice": [graph(tmp_path, 2.0)],
            "six times": [graph(tmp_path, 3.0), str(renamed(graph(tmp_path, 2.0)))],
            "missing": [str(tmp_path / "none.onnx")],
        }.items()
    ]
    np.savez(tmp_path / "feed.npz", x=np.float32([1, 2]))
    with contest.loaded(sides, tmp_path / "log.txt") as (processes, failed):
        assert list(processes) == ["twice", "six times"]
        assert "none.onnx" in failed["missing"]
        for name, process in processes.items():
            process.ask("feed", arrays=str(tmp_path / "feed.npz"), into=str(tmp_path / f"{name}.npz"))
        question = {"repeats": 3, "clock": "wall"}
        told, dropped, busy = contest.take_turns(processes, failed, 2, "run", question)
    assert np.load(tmp_path / "twice.npz")["y"].tolist() == [2, 4]
    assert np.load(tmp_path / "six times.npz")["z"].tolist() == [6, 12]
    assert [len(one["milliseconds"]) for one in told["twice"]] == [3, 3]
    assert set(dropped) == {"missing"}
    assert 0 <= busy <= 1
    assert contest.ratio([2, 4, 9], [1, 2, 3]) == 2


def test_a_side_whose_process_is_gone_stays_out_of_later_rounds(part, tmp_path):
    contest = part("contest")
    load = {"kind": "graphs", "paths": [graph(tmp_path, 2.0)], "threads": 1, "config": {}}
    sides = [contest.Side(name, Path(sys.executable), load) for name in ("lives", "is gone")]
    np.savez(tmp_path / "feed.npz", x=np.float32([1, 2]))
    with contest.loaded(sides, tmp_path / "log.txt") as (processes, failed):
        processes["is gone"].end()
        processes["lives"].ask("feed", arrays=str(tmp_path / "feed.npz"), into=str(tmp_path / "out.npz"))
        gone = {**failed, "is gone": "its process ended with -11"}
        told, dropped, _ = contest.take_turns(processes, gone, 2, "run", {"repeats": 1, "clock": "wall"})
    assert list(told) == ["lives"]
    assert dropped == gone


def renamed(path: str) -> Path:
    """A graph that goes on where another ended: y to z."""
    model = onnx.load(path)
    model.graph.node[0].input[0], model.graph.node[0].output[0] = "y", "z"
    model.graph.input[0].name, model.graph.output[0].name = "y", "z"
    onnx.save(model, renamed := Path(path).with_name("behind.onnx"))
    return renamed


@pytest.mark.parametrize(
    ("ratio", "bar", "met"),
    [(0.5, "<= 0.5", True), (1.0, "< 1", False), (2.1, ">= 2.0", True), (None, "< 1", None), (3, None, None)],
)
def test_a_bar_is_met_or_not(part, ratio, bar, met):
    row = part("record").Row
    assert row("case", "ms", {}, ratio, "of", bar).met is met
    assert not row("case", "ms", {}, ratio, "of", bar, quality_kept=False).met


def test_the_page_says_what_was_missed_and_what_failed(part, tmp_path):
    record = part("record").Record(tmp_path / "results.json")
    row = part("record").Row
    environment = {"cpu": "A CPU", "cores": 2, "flags": ["AVX2"], "packages": {"torch": "1.0"}}
    rows = [
        row("ViT fp32", "ms", {"ours": 9.0, "peer": 8.0}, 1.125, "ours / peer", "< 1", {"Olive": "no wheel"}, "a remark", 0.4)
    ]
    record.put("encoders", "ViT", rows, environment, "python suite.py --only encoders", {})
    again = part("record").Record(tmp_path / "results.json")
    assert again.has("encoders", "ViT") and not again.has("encoders", "BERT")
    part("page").write_page(again, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| ViT fp32 | 9 ms | 8 ms | 1.12 (ours / peer) | < 1 | **missed** |" in page
    assert "- ViT fp32: Olive failed: no wheel" in page
    assert "- ViT fp32: a remark." in page
    assert "others used up to 40 % of the machine" in page
    assert "`python suite.py --only encoders`" in page


def test_the_page_marks_what_was_measured_with_other_passes(part, tmp_path):
    passes, row = part("passes"), part("record").Row("a", "ms", {"ours": 1.0})
    today = passes.passes_of(["all-minilm-l6-v2", "all-minilm-l6-v2/cpu-int8-dynamic"])
    assert passes.changed_since(today) is None
    assert passes.changed_since({}) is None  # no recipe had a part in it
    assert passes.changed_since(None) == "nobody wrote down with which passes"
    before = {name: {**one, "passes": {**one["passes"], "OnnxConversion": 0}} for name, one in today.items()}
    environment = {"cpu": "A CPU", "cores": 2, "flags": [], "packages": {}, "revision": "abc"}
    record = part("record").Record(tmp_path / "results.json")
    for name, recipes in {"new": today, "old": before}.items():
        record.put("encoders", name, [replace(row, case=name)], environment, "python suite.py", recipes)
    part("page").write_page(record, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| new | 1 ms |" in page
    assert "| old‡ | 1 ms |" in page
    assert "- ‡ all-minilm-l6-v2: OnnxConversion 0 (now " in page
    assert "revision abc: new; old." in page


def test_a_peer_that_cannot_be_installed_is_told_in_one_line(part, tmp_path):
    peers, failure = part("peers"), part("contest").PeerFailed
    with pytest.raises(failure, match=r"^pip cannot install bogus: .*does-not-exist"):
        peers.environment(peers.Peer("bogus", (str(tmp_path / "does-not-exist"),), "bogus"), tmp_path)


def test_memory_is_that_of_the_whole_tree(part, tmp_path):
    building = part("building")
    held = "data = bytearray(b'x') * 150_000_000; import time; time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held!r}]); {held}"
    cost = building._cost([sys.executable, "-c", parent], tmp_path, 1)
    assert 150e6 < cost.anonymous < 300e6
    assert cost.anonymous < cost.resident
    with pytest.raises(part("contest").PeerFailed, match="exit 3: what went wrong"):
        building._cost([sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"], tmp_path, 1)


def test_gguf_holds_every_weight_in_the_order_of_llama_cpp(part, tiny_llama: ModelHandle, tmp_path):
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    path = part("gguf_file").gguf(tiny_llama.folder, "F16", tmp_path, Path(sys.executable), 1)
    config = json.loads((tiny_llama.folder / "config.json").read_text())
    known = {one.name: one for one in GGUFReader(path).tensors}
    weights = load_file(tiny_llama.folder / "model.safetensors")
    assert len(known) == len(weights)
    query = np.asarray(known["blk.1.attn_q.weight"].data, np.float32)
    heads, width = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    source = weights["model.layers.1.self_attn.q_proj.weight"]
    for head in range(heads):
        rows = source[head * width : (head + 1) * width]
        pairs = np.stack([rows[: width // 2], rows[width // 2 :]], axis=1).reshape(width, -1)
        np.testing.assert_allclose(query[head * width : (head + 1) * width], pairs, atol=1e-3)
    down = np.asarray(known["blk.0.ffn_down.weight"].data, np.float32)
    np.testing.assert_allclose(down, weights["model.layers.0.mlp.down_proj.weight"], atol=1e-3)


def test_a_token_reads_weights_of_products_and_the_cache(part, tmp_path):
    x = helper.make_tensor_value_info("ids", TensorProto.INT64, [1])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    weights = [
        helper.make_tensor("table", TensorProto.FLOAT, [100, 4], np.zeros(400)),
        helper.make_tensor("head", TensorProto.FLOAT, [4, 5], np.zeros(20)),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights)), tmp_path / "model.onnx")
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 3, "head_size": 8}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx", **sizes}}}))
    assert part("bandwidth").bytes_a_token(tmp_path, context=10) == (4 * 5 * 4, 2 * 2 * 3 * 8 * 4 * 10)


def test_a_timed_command_finds_its_modules_compiled(part, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "compiled"))
    (tmp_path / "module.py").write_text("")
    assert part("commands")._timed([sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import module"], tmp_path) > 0
    assert list((tmp_path / "compiled").rglob("module.*.pyc"))
