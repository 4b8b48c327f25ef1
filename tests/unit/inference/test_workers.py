# SPDX-License-Identifier: Apache-2.0
import pickle
import shutil
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path, PurePath
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.errors import MissingPackageError, NoConnectionError
from anomalib_uniad.inference import workers
from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.images import ImageFile
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


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RayTimeoutError(Exception):
    pass


@pytest.fixture
def ray(monkeypatch) -> SimpleNamespace:
    """What is used of Ray, in this process; ``lost`` ends it after the first batch."""

    class Dataset:
        def __init__(self, tables: list) -> None:
            self.tables = tables

        def map_batches(self, worker: type, *, fn_constructor_args: tuple, **options) -> "Dataset":
            assert (options["batch_size"], options["num_cpus"]) == (None, 2)
            assert len(self.tables) > 1
            call = worker(*fn_constructor_args)
            return Dataset([call(table) for table in self.tables])

        def iter_batches(self, **options):
            for table in self.tables:
                yield table
                if found.lost is not None:
                    raise found.lost

    found = SimpleNamespace(lost=None)
    data = ModuleType("ray.data")
    data.from_arrow, data.ActorPoolStrategy = Dataset, dict
    data.exceptions = SimpleNamespace(ExecutionTimeoutError=RayTimeoutError)
    context = SimpleNamespace(execution_options=SimpleNamespace())
    data.DataContext = SimpleNamespace(get_current=lambda: context)
    exceptions = ModuleType("ray.exceptions")
    exceptions.RayError, exceptions.RayTaskError = RayError, RayTaskError
    package = ModuleType("ray")
    package.data = data
    for module in (package, data, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(workers, "_ray", lambda: nullcontext([2, 3]))
    return found


def test_the_files_of_one_process(task: Task, ray: SimpleNamespace, capsys) -> None:
    for number in range(20):
        Image.fromarray(np.full((9, 12), 12 * number, np.uint8)).save(f"{number}.png")
    written = []
    for output, more in (("one", []), ("two", ["--workers", "2"])):
        with pytest.raises(SystemExit, match="1"):
            main(["predict", "model.xml", ".", "--output", output, "--category", "bottle", *more])
        files = [file for file in Path(output).rglob("*") if file.is_file()]
        written.append({file.relative_to(output): file.read_bytes() for file in files})
        shutil.rmtree(output)
    assert written[0] == written[1]
    assert len(written[0]) == 2 + 2 * 22
    assert capsys.readouterr().err.splitlines() == ["broken.png cannot be read: it is empty."] * 2


@pytest.mark.parametrize("kind", [RayError, RayTimeoutError])
def test_lost_workers(task: Task, ray: SimpleNamespace, kind: type[Exception]) -> None:
    ray.lost = kind("The actor died:\nmany lines")
    names = [f"{number}.png" for number in range(20)]
    with pytest.raises(NoConnectionError, match=r"^The workers are lost \(The actor died\): look at .* --resume true"):
        list(workers.outputs_of_workers(task, [ImageFile(Path(name), PurePath(name)) for name in names], 2))
    ray.lost = RayTaskError("a fault of ours")
    with pytest.raises(RayTaskError):
        list(workers.outputs_of_workers(task, [ImageFile(Path(name), PurePath(name)) for name in names], 2))
