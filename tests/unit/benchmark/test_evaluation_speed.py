# SPDX-License-Identifier: Apache-2.0
"""What `anomalib-uniad bench metrics` measures, compares, writes and shows; never how fast it is."""

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import auto_cli

import brute_force
from anomalib_uniad.benchmark import report
from anomalib_uniad.benchmark.evaluation import case, command, methods, session, tables
from anomalib_uniad.benchmark.evaluation.figure import draw
from anomalib_uniad.benchmark.evaluation.maps import GeneratedMaps, generate

MAPS = GeneratedMaps(images=9, image_size=24, categories=2, seed=3)
NAMES = get_args(command.MethodName)
EPS = 1e-6  # of the exact values
EPS_AUPRO = 1e-4


def whole(maps: GeneratedMaps) -> list:
    return list(maps.batches(maps.images))


def values_of(name: command.MethodName, maps: GeneratedMaps = MAPS, batch_size: int = 4) -> methods.Values:
    method = methods.method(name, maps)
    for batch in maps.batches(batch_size, shuffled=name == "shuffled"):
        method.update(batch)
    return method.compute()


def test_images_are_the_same_in_any_order_and_number_per_batch() -> None:
    (batch,) = whole(MAPS)
    assert batch.image_path[0] == "category_00/test/any/00000.png"
    assert Counter(path.split("/")[0] for path in batch.image_path) == {"category_00": 5, "category_01": 4}
    parts = list(MAPS.batches(4))
    assert [len(part) for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat([part.anomaly_map for part in parts]), batch.anomaly_map)
    (shuffled,) = MAPS.batches(9, shuffled=True)
    assert shuffled.image_path != batch.image_path
    order = [shuffled.image_path.index(path) for path in batch.image_path]
    assert torch.equal(shuffled.anomaly_map[order], batch.anomaly_map)
    assert torch.equal(shuffled.gt_mask[order], batch.gt_mask)
    (other,) = GeneratedMaps(9, 24, 2, seed=4).batches(9)
    assert not torch.equal(other.anomaly_map, batch.anomaly_map)


def test_images_are_like_those_of_a_test() -> None:
    (batch,) = whole(GeneratedMaps(images=100, image_size=64, categories=2))
    assert batch.anomaly_map.dtype == torch.float32
    assert 0 <= batch.anomaly_map.min() < batch.anomaly_map.max() <= 1  # torchmetrics leaves such scores as they are
    assert 0.02 < batch.gt_mask.float().mean() < 0.04
    assert batch.gt_label.sum() == 73
    assert torch.equal(batch.gt_label.bool(), batch.gt_mask.flatten(1).any(dim=1))
    assert batch.anomaly_map.unique().numel() > 0.98 * batch.anomaly_map.numel()  # few ties
    values = values_of("per_category", GeneratedMaps(images=100, image_size=64, categories=2))
    assert all(0.5 < value < 1 for name, value in values.items() if name.startswith("pixel"))


@pytest.mark.parametrize("images", [8, 11, 60])
def test_each_category_has_both_kinds(images: int) -> None:
    maps = GeneratedMaps(images, 8, 2)
    kinds = {(maps.category_of(index), maps.is_defective(index)) for index in range(images)}
    assert len(kinds) == 4


def test_a_normal_image_has_an_empty_mask() -> None:
    assert not generate(np.random.default_rng(0), 32, defective=False)[1].any()
    assert generate(np.random.default_rng(0), 32, defective=True)[1].any()


def test_data_of_a_category() -> None:
    assert MAPS.category_bytes == 5 * 24 * 24 * (4 + 1)


@pytest.mark.parametrize("name", ["functions", "shuffled", "sklearn"])
def test_values_are_the_same_per_category(name: command.MethodName) -> None:
    values, ours = values_of(name), values_of("per_category")
    assert len(ours) == 7 * 2
    found = session.differences(values, ours)
    assert found[""] < EPS
    assert found["AUPRO"] < EPS_AUPRO


def test_values_are_the_same_pooled() -> None:
    values, ours = values_of("anomalib"), values_of("pooled")
    assert len(ours) == 7
    found = session.differences(values, ours)
    assert found[""] < EPS  # in single precision; more images make it worse
    assert found["AUPRO"] < EPS_AUPRO
    per_category = values_of("per_category")
    assert abs(ours["pixel_AP/all"] - per_category["pixel_AP/category_00"]) > 1e-3


def test_sklearns_aupro_is_that_of_the_definition() -> None:
    (batch,) = GeneratedMaps(images=4, image_size=12, categories=1, seed=1).batches(4)
    expected = brute_force.aupro(batch.anomaly_map.numpy(), batch.gt_mask.numpy(), 0.3)
    values = values_of("sklearn", GeneratedMaps(images=4, image_size=12, categories=1, seed=1))
    assert values["pixel_AUPRO/category_00"] == pytest.approx(expected, abs=EPS_AUPRO)


def test_one_measurement(monkeypatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(case, "_limit_memory", limits.append)
    threads = torch.get_num_threads()
    found = case.measure("functions", images=8, image_size=16, categories=2, memory_limit=3)
    torch.set_num_threads(threads)
    assert limits == [3]
    assert found["values"] == values_of("functions", GeneratedMaps(8, 16, 2))
    assert found["seconds"] > 0
    assert found["processor_seconds"] > 0
    assert found["peak_memory_bytes"] >= 0


class _Failing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def update(self, batch: object) -> None:
        if len(batch.image_path) != 8:  # the warm-up has 8
            raise self.error

    def compute(self) -> dict:
        return {}


def test_too_little_memory_is_a_note(monkeypatch) -> None:
    monkeypatch.setattr(case, "_limit_memory", lambda _: None)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        monkeypatch.setattr(methods, "method", lambda *_, error=error: _Failing(error))
        assert case.measure(images=4, categories=1, image_size=16) == {"note": "needs more than 12 GiB"}
    monkeypatch.setattr(methods, "method", lambda *_: _Failing(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        case.measure(images=4, categories=1, image_size=16)


def test_a_process_of_its_own(monkeypatch) -> None:
    calls: list = []

    def finished(command, **kwargs):
        calls.append((command, kwargs))
        return subprocess.CompletedProcess(command, 0, 'noise\n{"seconds": 1.5}\n', "")

    monkeypatch.setattr(subprocess, "run", finished)
    assert case.run({"method": "sklearn", "threads": 2}, 5.0) == {"seconds": 1.5}
    ((arguments, kwargs),) = calls
    assert arguments[:3] == [sys.executable, "-m", "anomalib_uniad.benchmark.evaluation.case"]
    assert arguments[3:] == ["--method=sklearn", "--threads=2"]
    assert kwargs["timeout"] == 5.0
    assert kwargs["env"]["OMP_NUM_THREADS"] == "2"


def test_a_process_that_does_not_come_to_its_end(monkeypatch) -> None:
    def late(command, **kwargs):
        raise subprocess.TimeoutExpired(command, kwargs["timeout"])

    monkeypatch.setattr(subprocess, "run", late)
    assert case.run({"method": "sklearn"}, 5.0) == {"note": "takes more than 5 s"}
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, -9, "", ""))
    assert "killed by signal 9" in case.run({"method": "sklearn"}, 5.0)["note"]
    monkeypatch.setattr(subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "", "a\nValueError: b"))
    with pytest.raises(RuntimeError, match=r"--method=sklearn failed \(exit status 1\): a\nValueError: b"):
        case.run({"method": "sklearn"}, 5.0)


def test_the_memory_is_limited() -> None:
    pytest.importorskip("resource")
    code = "from anomalib_uniad.benchmark.evaluation import case; case._limit_memory(0.5); bytearray(2**30)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if sys.platform == "linux":
        assert "MemoryError" in done.stderr


def _fake(arguments: dict, time_limit: float) -> dict:
    """Measurements without a process: scikit-learn takes 40 times as long, anomalib needs too much memory."""
    name = arguments["method"]
    if name == "anomalib":
        return {"note": "needs more than 12 GiB"}
    seconds = arguments["images"] / 100 * (40 if name == "sklearn" else 1)
    values = {"pixel_AUROC/a": 0.5 + (1e-9 if name == "sklearn" else 0), "pixel_AUPRO/a": 0.25}
    memory = arguments["images"] * 2**20
    return {"seconds": 2 * seconds, "processor_seconds": seconds, "peak_memory_bytes": memory, "values": values}


def run(folder: Path, images: tuple[int, ...] = (20, 40), measure=_fake) -> pd.DataFrame:
    benchmark = session.Session(folder, 8, 1, 60.0, 12.0, 0, run=measure)
    benchmark.run([(count, 32, 2) for count in images], NAMES)
    return pd.read_csv(folder / "evaluation_speed.csv")


def test_rows_are_written_compared_and_replaced(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    run(tmp_path)
    frame = run(tmp_path)
    assert torch.get_num_threads() == threads
    assert frame["method"].tolist() == 2 * list(NAMES)
    assert set(frame) >= {"command", "seed", "versions", "device", "categories", "image_size", "category_bytes"}
    assert "scikit-learn" in frame["versions"][0]
    assert frame["device"].str.endswith(", 1 threads").all()
    row = frame[(frame["method"] == "sklearn") & (frame["images"] == 40)].iloc[0]
    assert (row["ratio"], row["compared_with"], row["difference_AUPRO"]) == (40, "per_category", 0)
    assert row["difference"] == pytest.approx(1e-9)
    failed = frame[frame["method"] == "anomalib"]
    assert failed["note"].tolist() == 2 * ["needs more than 12 GiB"]
    assert failed[["seconds", "processor_seconds", "ratio", "peak_memory_bytes", "difference"]].isna().all(axis=None)
    assert (tmp_path / "evaluation_speed.png").stat().st_size > 10_000
    text = report.render("<!-- table: evaluation_speed -->\n<!-- end -->", tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| scikit-learn, per category | 8 (40) | 16 (40) |" in lines
    assert "| anomalib, all images pooled | needs more than 12 GiB | needs more than 12 GiB |" in lines
    assert "| this package, per category | 20 | 40 |" in lines
    assert any(line.startswith("Largest difference to scikit-learn: 0e+00 in AUPRO, 1e-09 in the") for line in lines)


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    def interrupted(arguments: dict, time_limit: float) -> dict:
        if arguments["method"] == "shuffled":
            raise KeyboardInterrupt
        return _fake(arguments, time_limit)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, measure=interrupted)
    assert pd.read_csv(tmp_path / "evaluation_speed.csv")["method"].tolist() == ["per_category", "functions"]


def test_values_that_differ_are_told(tmp_path: Path, caplog) -> None:
    def wrong(arguments: dict, time_limit: float) -> dict:
        found = _fake(arguments, time_limit)
        if arguments["method"] == "sklearn":
            found["values"]["pixel_AUPRO/a"] = 0.2502
        return found

    with caplog.at_level(logging.WARNING, logger=session.__name__):
        frame = run(tmp_path, (20,), wrong)
    assert "differ from those of scikit-learn" in caplog.text
    assert frame["difference_AUPRO"].max() == pytest.approx(2e-4)
    with pytest.raises(ValueError, match="one of two methods only: pixel_AP/a"):
        session.differences({"pixel_AP/a": 1.0}, {})


def test_sizes_of_several_calls_stand_side_by_side(tmp_path: Path) -> None:
    run(tmp_path)
    benchmark = session.Session(tmp_path, 8, 1, 60.0, 12.0, 0, run=_fake)
    benchmark.run([(20, 64, 2)], NAMES[:1])
    frame = pd.read_csv(tmp_path / "evaluation_speed.csv")
    assert len(frame) == 13
    text = tables.speed(frame)
    assert "2 categories, maps of 32 x 32 pixels" in text
    assert "2 categories, maps of 64 x 64 pixels" in text
    draw(frame[frame["method"] != "anomalib"], tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").is_file()


def test_the_command(tmp_path: Path, monkeypatch) -> None:
    sizes: list = []
    monkeypatch.setattr(session.Session, "run", lambda self, *arguments: sizes.append(arguments))
    auto_cli(command.metrics, args=["--quick", "true", "--methods", "[sklearn]", "--output_dir", str(tmp_path)])
    assert sizes == [([(20, 32, 2), (40, 32, 2)], ["per_category", "sklearn"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": (59,)}, r"at least 4 images of each category, got \[59\] images of 15"),
        ({"images": ()}, "at least 4 images"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"time_limit": 0}, "time_limit must be positive"),
        ({"memory_limit": -1.0}, r"memory_limit must be positive, got -1\.0"),
        ({"methods": ("scipy",)}, "methods must be among per_category, .*, got 'scipy'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.metrics(**arguments)
