from __future__ import annotations

import getpass
import socket
import subprocess

import pytest

from runner.bench.environment import OtherLoad, cpu_flags, describe, revision
from runner.bench.results import host_label


@pytest.mark.parametrize(
    ("cpu", "cores", "label"),
    [
        ("AMD EPYC", 2, "amd-epyc-2c"),
        ("AMD EPYC 7763 64-Core Processor", 4, "amd-epyc-7763-4c"),
        ("Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", 8, "intel-xeon-platinum-8370c-8c"),
        ("13th Gen Intel(R) Core(TM) i7-1360P", 16, "13th-gen-intel-core-i7-1360p-16c"),
        ("Apple M3 Pro", 12, "apple-m3-pro-12c"),
        ("", 1, "unknown-cpu-1c"),
    ],
)
def test_a_machine_has_a_short_label(cpu, cores, label):
    assert host_label(cpu, cores) == label


def test_the_environment_names_the_machine_and_nobody():
    found = describe(0.25)
    text = found.model_dump_json()
    assert found.cores >= 1
    assert found.packages["onnxruntime"]
    assert found.busy == 0.25
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text
    assert set(cpu_flags()) == set(found.flags)


def _committed(folder):
    def git(*words):
        told = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder), *words]
        return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("runner.py", "README.md", "recipes/family/model/info.yml", "recipes/family/model/results/a.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    return git("rev-parse", "--short=12", "HEAD")


def test_the_revision_is_marked_where_what_runs_has_changed(tmp_path):
    plain = _committed(tmp_path)
    assert revision(tmp_path) == plain
    for name in ("README.md", "recipes/family/model/README.md", "recipes/family/model/results/b.json"):
        (tmp_path / name).write_text("2")
    assert revision(tmp_path) == plain
    (tmp_path / "recipes/family/model/info.yml").write_text("2")
    assert revision(tmp_path) == f"{plain}-dirty"


def test_a_copy_without_git_is_told_its_revision(tmp_path, monkeypatch):
    monkeypatch.delenv("RECIPE_REVISION", raising=False)
    assert revision(tmp_path) is None
    monkeypatch.setenv("RECIPE_REVISION", "0123abc-dirty\n")
    assert revision(tmp_path) == "0123abc-dirty"


def test_the_load_of_others_is_a_share():
    others = OtherLoad()
    sum(at * at for at in range(300_000))
    assert 0 <= others.share() <= 1
