# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad predict --workers`` with Ray itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from PIL import Image

from anomalib_uniad.errors import InputError
from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.images import find_images
from anomalib_uniad.inference.inspector import Judge
from anomalib_uniad.inference.workers import Task, outputs_of_workers
from tiny_openvino import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IMAGES = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The tiny model, and images that take a moment to read, some of which cannot be."""
    root = tmp_path_factory.mktemp("workers")
    save_tiny(root / "model.xml")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 900, 900, 3), dtype=np.uint8)
    for number in range(IMAGES):
        file = root / "images" / ("bottle", "cable")[number % 2] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < len(pixels):
            Image.fromarray(pixels[number]).save(file)
        elif number % 50 == 0:
            file.write_text("no image")
        else:
            os.link(root / "images" / ("bottle", "cable")[number % 2] / f"{number % 4:03}.png", file)
    return root


def start(folder: Path, output: str, *arguments: str) -> subprocess.Popen[str]:
    code = "from anomalib_uniad.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", "model.xml", "images", "--output", output, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def rows(table: Path) -> int:
    return table.read_bytes().count(b"\n") - 1 if table.exists() else 0


def test_a_worker_is_killed(folder: Path) -> None:
    with start(folder, "one", "--heatmaps", "false") as one:
        expected, failures = one.communicate(timeout=100)
    with start(folder, "two", "--heatmaps", "false", "--workers", "2") as two:
        try:
            while rows(folder / "two" / "predictions.csv") < 40:
                assert two.poll() is None
                time.sleep(0.02)
            family = psutil.Process(two.pid).children(recursive=True)
            (victim, _) = [process for process in family if "MapWorker" in " ".join(process.cmdline())]
            os.kill(victim.pid, signal.SIGKILL)
            assert rows(folder / "two" / "predictions.csv") < IMAGES / 2
            out, error = two.communicate(timeout=200)
        finally:
            two.kill()
    assert two.returncode == one.returncode == 1
    for name in ("predictions.csv", "predictions.jsonl"):
        assert (folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes()
    assert rows(folder / "two" / "predictions.csv") == IMAGES
    assert error == failures  # the images that cannot be read, and nothing of Ray
    assert out.partition(" failed.")[0] == expected.partition(" failed.")[0]
    assert len(out.splitlines()) == 2


def task(folder: Path, origin: tuple[str, str] | None = None) -> Task:
    judge = (0, "", None, None)
    origin = origin or Judge(compile_file(Path("model.xml"), "CPU", "f32", 1), *judge).origin
    return Task(folder, Path("model.xml"), "CPU", "f32", 1, judge, False, origin)


def test_a_mistake_in_a_worker(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"A worker on .* cannot start: model.xml or its thresholds are others"):
        list(outputs_of_workers(task(folder, ("another", "")), find_images([Path("images")]), 1))


def test_nothing_of_ray_goes_on_after_an_early_end(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    outputs = outputs_of_workers(task(folder), find_images([Path("images")]), 1)
    next(outputs)
    outputs.close()
    assert not [thread.name for thread in threading.enumerate() if "StreamingExecutor" in thread.name]
    assert not ray.is_initialized()
