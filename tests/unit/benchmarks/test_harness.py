# SPDX-License-Identifier: Apache-2.0
"""Rows, rounds, processes and memory of the measuring scripts."""

import os
import runpy
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch

import harness
from harness import CPU, Memory, add_rows, apart, in_turn


def rows(value: float, method: str = "A", seed: object = 0, **others: object) -> list[dict]:
    return [{"method": method, "seed": seed, "value": value, **others}]


def test_rows_of_the_same_case_are_replaced_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.csv"
    for value, seed in ((0.1, 133), (0.2, 133.0), (0.3, "133")):
        add_rows(path, rows(value, seed=seed), ("method", "seed"))
    for value, seed in ((0.4, None), (0.5, float("nan")), (0.6, "")):
        add_rows(path, rows(value, "B", seed), ("method", "seed"))
    add_rows(path, rows(0.7, seed=7), ("method", "seed"))
    written = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert written.to_numpy().tolist() == [["A", "133", "0.3"], ["B", "", "0.6"], ["A", "7", "0.7"]]


def test_numbers_that_are_there_keep_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("method,seed,value,note\nA,0,0.7088333368301392,\nB,1,1e-9,NA\n")
    add_rows(path, rows(0.5, "C", steps=3), ("method",))
    lines = path.read_text().splitlines()
    assert (
        lines
        == [
            "method,seed,value,note,steps",
            "A,0,0.7088333368301392,,",
            "B,1,1e-9,NA,",
            "C,0,0.5,,3.0",
        ]
        or lines[-1] == "C,0,0.5,,3"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_rows_say_how_they_came_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["/somewhere/benchmarks/training.py", "--parts", "[gpu]", str(tmp_path / "model.ckpt")]
    monkeypatch.setattr(sys, "argv", arguments)
    found = harness.origin(CPU, 3, ("numpy", "no-such-package"))
    assert found["command"] == "python benchmarks/training.py --parts '[gpu]' model.ckpt"
    assert found["device"].endswith(f", {torch.get_num_threads()} threads")
    assert f"torch {version('torch')}; anomalib-uniad " in found["versions"]
    assert found["versions"].endswith("no-such-package unknown")
    assert found["seed"] == 3
    assert harness.origin("a device")["device"] == "a device"


def test_measurements_are_taken_in_turn() -> None:
    calls: list[str] = []

    def measure(name: str) -> int:
        calls.append(name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return len(calls)

    measures = {name: lambda name=name: measure(name) for name in "ab"}
    found = []
    with pytest.raises(KeyboardInterrupt):
        for results in in_turn(measures, 4, "Test"):
            found.append({name: list(values) for name, values in results.items()})  # noqa: PERF401
    assert calls == ["a", "b"] * 3
    assert found == [{"a": [1], "b": [2]}, {"a": [1, 3], "b": [2, 4]}]  # whole rounds alone


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path: Path) -> None:
    assert apart(os.getpid, {}) != os.getpid()
    message = r"shorten\(\{'text': 'a b', 'width': 1\}\) failed: ValueError: placeholder too large"
    with pytest.raises(RuntimeError, match=message):
        apart(textwrap.shorten, {"text": "a b", "width": 1})
    with pytest.raises(TimeoutError, match=r"takes more than 0\.5 s"):
        apart(runpy.run_path, {"path_name": str(tmp_path)}, 0.5)
    file = tmp_path / "script.py"
    file.write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ChildProcessError, match="was killed by signal 9, perhaps for want of memory"):
        apart(runpy.run_path, {"path_name": str(file)})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system limits nothing")
def test_the_memory_is_limited(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("from harness import limit_memory; limit_memory(0.5); bytearray(2**30)")
    with pytest.raises(RuntimeError, match="MemoryError"):
        apart(runpy.run_path, {"path_name": str(file)})


def test_memory_counts_from_now_on() -> None:
    memory = Memory(CPU)
    block = torch.ones(25_000_000)  # not from memory that the process has already
    assert memory.peak() >= block.nbytes * 0.9
    del block
    assert memory.peak() >= 25_000_000 * 4 * 0.9


def test_the_matrix_rate_is_a_rate() -> None:
    assert 1e8 < harness.matrix_rate(CPU, torch.float32, seconds=0.01) < 1e16


def test_devices_that_are_not_there_are_refused() -> None:
    assert harness.find_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"device must be 'auto' or one of 'cpu'.*, got 'tpu'"):
        harness.find_device("tpu")


def test_images_are_written_in_the_layout(tmp_path: Path) -> None:
    paths = harness.write_images(tmp_path, 3, 32, seed=1)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "cloth/train/good/00000.png",
        "metal/train/good/00001.png",
        "cloth/train/good/00002.png",
    ]
    assert cv2.imread(str(paths[0])).shape == (32, 32, 3)
    again = harness.write_images(tmp_path / "again", 3, 32, seed=1)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    assert len({path.read_bytes() for path in paths}) == 3
