"""How runs fail: one clear error, the right exit code, nothing half-written, nothing of what was done lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def heed_interrupts() -> None:
    """A test suite started in the background ignores Ctrl-C, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Project:
    """A folder with a script model and a configuration of two steps, and a cache of its own."""

    folder: Path

    def behave(self, how: str) -> None:
        (self.folder / "behaviour.txt").write_text(how)

    @property
    def loads(self) -> int:
        file = self.folder / "loads.txt"
        return len(file.read_text()) if file.exists() else 0

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def command(self, *flags: str) -> list[str]:
        return [sys.executable, "-m", "runner", "run", "--config", "config.json", "--trust", *flags]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RECIPE_CACHE": str(self.folder / "cache"), "COLUMNS": "200"}

    def start(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags),
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *flags: str) -> tuple[int, str]:
        process = self.start(*flags)
        out, error = process.communicate(timeout=120)
        return process.returncode, out + error

    def wait_for_load(self, count: int = 1) -> None:
        limit = time.monotonic() + 60
        while self.loads < count and time.monotonic() < limit:
            time.sleep(0.05)
        assert self.loads >= count

    def litter(self) -> list[Path]:
        """Unfinished work: scratch folders and half-made outputs."""
        scratch = self.folder / "cache" / "scratch"
        return [*(scratch.iterdir() if scratch.is_dir() else ()), *self.folder.glob(".out*")]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    shutil.copy(Path(__file__).with_name("script_model.py"), tmp_path / "script_model.py")
    config = {
        "input_model": {
            "type": "PyTorchModel",
            "model_script": "script_model.py",
            "model_loader": "load",
            "dummy_inputs_func": "inputs",
            "io_config": {"input_names": ["x"], "output_names": ["y"], "input_shapes": [[1, 16]], "input_types": ["float32"]},
        },
        "passes": {"convert": {"type": "OnnxConversion"}, "quantize": {"type": "OnnxDynamicQuantization"}},
        "output_dir": "out",
    }
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    project = Project(tmp_path)
    project.behave("well")
    yield project


def log_of(text: str) -> str:
    line = next(line for line in text.splitlines() if "log:" in line)
    return Path(line.split("log:")[1].strip()).read_text()


@pytest.mark.parametrize("how", ["raise", "os-error", "system-exit", "memory"])
def test_whatever_a_pass_raises_ends_with_exit_1_and_the_log(project: Project, how: str) -> None:
    project.behave(how)
    code, text = project.run()
    assert code == 1
    assert "convert" in text
    assert "Traceback" not in text
    assert "Traceback" in log_of(text)
    assert not project.output.exists()
    assert project.litter() == []


def test_a_failure_is_not_cached(project: Project) -> None:
    project.behave("raise")
    assert project.run()[0] == 1
    loads = project.loads
    assert project.run()[0] == 1
    assert project.loads > loads
    project.behave("well")
    code, text = project.run()
    assert code == 0, text
    assert (project.output / "model.onnx").is_file()


def test_a_second_run_starts_no_worker(project: Project) -> None:
    assert project.run()[0] == 0
    loads = project.loads
    code, text = project.run()
    assert (code, project.loads) == (0, loads)
    assert "up to date" in text


@posix_only
@pytest.mark.parametrize(("how", "words"), [("kill", "was killed (SIGKILL)"), ("crash", "SIGSEGV"), ("exit", "said nothing")])
def test_a_dying_worker_is_told_as_what_it_is(project: Project, how: str, words: str) -> None:
    project.behave(how)
    code, text = project.run()
    assert code == 1
    assert words in text
    assert project.litter() == []


def test_limits_end_the_worker(project: Project) -> None:
    project.behave("hang")
    code, text = project.run("--timeout", "8")
    assert (code, "time-limit" in text) == (1, True)
    project.behave("hog")
    code, text = project.run("--max-memory", "0.7")
    assert (code, "memory-limit" in text) == (1, True)


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_gives_130_and_leaves_nothing_half_written(project: Project, number: signal.Signals) -> None:
    project.behave("hang")
    process = project.start()
    project.wait_for_load()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in error
    assert not project.output.exists()
    assert project.litter() == []


@posix_only
def test_the_worker_does_not_outlive_its_parent(project: Project) -> None:
    project.behave("hang")
    process = project.start()
    project.wait_for_load()
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    project.behave("well")
    assert project.run()[0] == 0
    assert project.litter() == []


@posix_only
def test_a_rerun_after_kill_9_resumes_behind_the_last_finished_step(project: Project) -> None:
    config = json.loads((project.folder / "config.json").read_text())
    (project.folder / "config.json").write_text(json.dumps({**config, "passes": {"convert": {"type": "OnnxConversion"}}}))
    assert project.run()[0] == 0
    (project.folder / "config.json").write_text(json.dumps(config))
    project.behave("hang")  # the check of the second step loads the source again
    process = project.start()
    project.wait_for_load(project.loads + 1)
    for worker in psutil.Process(process.pid).children():
        worker.kill()
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "quantize" in error
    project.behave("well")
    code, text = project.run("--json")
    assert code == 0, text
    assert [step["step"] for step in json.loads(text)["receipt"]["steps"]] == ["convert", "quantize"]
    logs = sorted((project.folder / "cache" / "logs").glob("*.log"))
    assert len(logs) == 3


def test_editing_the_script_causes_a_miss(project: Project) -> None:
    assert project.run()[0] == 0
    loads = project.loads
    script = project.folder / "script_model.py"
    script.write_text(script.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    assert project.run()[0] == 0
    assert project.loads > loads


def test_two_runs_at_once_make_each_step_once(project: Project) -> None:
    processes = [project.start("--output-dir", f"out{number}") for number in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    made = [(project.folder / f"out{number}" / "receipt.json").read_text() for number in range(2)]
    assert json.loads(made[0])["fingerprint"] == json.loads(made[1])["fingerprint"]
    entries = list((project.folder / "cache" / "store").glob("??/*/record.json"))
    assert len(entries) == 2


@posix_only
@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_told_and_keeps_what_was_done(project: Project) -> None:
    small = project.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, text = project.run("--set", "input_model.io_config.input_shapes=[[1,16]]", "--output-dir", str(small / "out"))
        assert code == 0, text  # the result fits: 64 KB
        (small / "filler").write_bytes(b"x" * (shutil.disk_usage(small).free // 4096 * 4096))
        code, text = project.run("--output-dir", str(small / "out2"))
        assert code == 1
        assert "disk-full" in text
        assert "Traceback" not in text
        (small / "filler").unlink()
        assert project.run("--output-dir", str(small / "out2"))[0] == 0
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_code_from_outside_needs_trust(project: Project) -> None:
    process = subprocess.run(
        [*(flag for flag in project.command() if flag != "--trust")],
        cwd=project.folder, env=project.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert "script_model.py" in process.stderr
    assert "--trust" in process.stderr
    assert project.loads == 0


@pytest.mark.parametrize("kind", ["file", "nowhere"])
def test_a_cache_that_cannot_be_used_is_told_in_a_line(project: Project, kind: str) -> None:
    (project.folder / "a-file").write_text("")
    cache = project.folder / "a-file" if kind == "file" else Path("/proc/nowhere")
    process = subprocess.run(
        project.command(), cwd=project.folder, env={**project.environment, "RECIPE_CACHE": str(cache)},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "choose another folder" in process.stderr
