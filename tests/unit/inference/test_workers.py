# SPDX-License-Identifier: Apache-2.0
import pickle
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from anomalib_uniad.errors import MissingPackageError, NoConnectionError
from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.inspector import Judge
from anomalib_uniad.inference.workers import Task, Worker, check_workers
from tiny_openvino import save_tiny


@pytest.fixture
def task(tmp_path: Path, monkeypatch) -> Task:
    monkeypatch.chdir(tmp_path)
    for name, value in {"dark": 60, "bright": 250}.items():
        Image.fromarray(np.full((9, 12), value, np.uint8)).save(f"{name}.png")
    Path("broken.png").touch()
    origin = Judge(compile_file(save_tiny(Path("model.xml")))).origin
    return Task(tmp_path, Path("model.xml"), "CPU", "f32", 1, (0, "", None, None), True, origin)


def answers(task: Task) -> list:
    table = Worker(task)(pa.table({"path": [b"dark.png", b"bright.png", b"broken.png"]}))
    return [pickle.loads(row.as_py()) for row in table["output"]]


def test_answers(task: Task) -> None:
    dark, bright, broken = answers(task)
    assert [output.error for output in (dark, bright, broken)] == ["", "", "broken.png cannot be read: it is empty."]
    assert (dark.inspection.decision, bright.inspection.decision, broken.inspection) == ("normal", "anomalous", None)
    assert [(folder, suffix) for folder, suffix, _ in bright.pictures] == [("heatmaps", ".jpg"), ("masks", ".png")]
    assert bright.inspection.mask.size == 0  # little is sent
    assert bright.anomaly_map is bright.image is bright.inspection.anomaly_map is None
    assert len(bright.inspection.regions) == 1
    assert not any(output.pictures for output in answers(replace(task, pictures=False)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": ("another", "")}, "model.xml or its thresholds are others than where the prediction was started."),
        ({"model": Path("gone.xml")}, "There is no model gone.xml"),
        ({"folder": Path("gone")}, "No such file or directory: 'gone'"),
    ],
)
def test_mistakes_come_in_the_place_of_answers(task: Task, change: dict, message: str) -> None:
    for answer in answers(replace(task, **change)):
        assert answer.startswith(f"A worker on {socket.gethostname()} cannot start: ")
        assert message in answer


def test_before_any_work(monkeypatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingPackageError, match=r"ray is not installed: pip install 'anomalib-uniad\[ray\]'"):
        check_workers(2)
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    monkeypatch.setitem(sys.modules, "ray.data", type(sys)("ray.data"))
    with pytest.raises(NoConnectionError, match=rf"There is no Ray cluster at 127.0.0.1:{port} \(RAY_ADDRESS\): .*"):
        check_workers(2)
