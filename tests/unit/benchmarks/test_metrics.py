# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/metrics.py measures, compares and writes; never how fast it is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import brute_force
import metrics
from metrics import METHODS, GeneratedMaps
from render_tables import render

MAPS = GeneratedMaps(images=9, image_size=24, categories=2, seed=3)
EPS, EPS_AUPRO = 1e-6, 1e-4


def values_of(name: str, maps: GeneratedMaps = MAPS, batch_size: int = 4) -> metrics.Values:
    method = metrics.make_method(name, maps)
    for batch in maps.batches(batch_size, shuffled=name == "shuffled"):
        method.update(batch)
    return method.compute()


def test_images_are_the_same_in_any_order_and_number_per_batch() -> None:
    (batch,) = MAPS.batches(9)
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
    assert MAPS.category_bytes == 5 * 24 * 24 * (4 + 1)


def test_images_are_like_those_of_a_test() -> None:
    maps = GeneratedMaps(images=100, image_size=64, categories=2)
    (batch,) = maps.batches(100)
    assert batch.anomaly_map.dtype == torch.float32
    assert 0 <= batch.anomaly_map.min() < batch.anomaly_map.max() <= 1  # torchmetrics leaves such scores as they are
    assert 0.02 < batch.gt_mask.float().mean() < 0.04
    assert batch.gt_label.sum() == 73
    assert torch.equal(batch.gt_label.bool(), batch.gt_mask.flatten(1).any(dim=1))
    assert batch.anomaly_map.unique().numel() > 0.98 * batch.anomaly_map.numel()  # few ties
    assert all(0.5 < value < 1 for name, value in values_of("per_category", maps).items() if name.startswith("pixel"))


@pytest.mark.parametrize("images", [8, 11, 60])
def test_each_category_has_both_kinds(images: int) -> None:
    maps = GeneratedMaps(images, 8, 2)
    assert len({(maps.category_of(index), maps.is_defective(index)) for index in range(images)}) == 4


@pytest.mark.parametrize(
    ("name", "reference"),
    [("functions", "per_category"), ("shuffled", "per_category"), ("sklearn", "per_category"), ("anomalib", "pooled")],
)
def test_values_are_the_same(name: str, reference: str) -> None:
    values, ours = values_of(name), values_of(reference)
    assert len(ours) == (9 if reference == "pooled" else 18)
    difference, difference_aupro = metrics.differences(values, ours)
    assert difference < EPS
    assert difference_aupro < EPS_AUPRO


def test_sklearns_aupro_is_that_of_the_definition() -> None:
    maps = GeneratedMaps(images=4, image_size=12, categories=1, seed=1)
    (batch,) = maps.batches(4)
    expected = brute_force.aupro(batch.anomaly_map.numpy(), batch.gt_mask.numpy(), 0.3)
    assert values_of("sklearn", maps)["pixel_AUPRO/category_00"] == pytest.approx(expected, abs=EPS_AUPRO)


class Failing:
    """Fails with all batches but that of the warm-up, which has 8 images."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def update(self, batch: object) -> None:
        if len(batch.image_path) != 8:
            raise self.error

    def compute(self) -> dict:
        return {}


def test_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(metrics, "limit_memory", limits.append)
    found = metrics.measure("functions", images=8, image_size=16, categories=2, memory_limit=3)
    assert limits == [3]
    assert found["values"] == values_of("functions", GeneratedMaps(8, 16, 2))
    assert found["seconds"] > 0
    assert found["processor_seconds"] > 0
    small = {"method": "functions", "images": 4, "image_size": 16, "categories": 1}
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        monkeypatch.setattr(metrics, "make_method", lambda *_, error=error: Failing(error))
        assert metrics.measure(**small) == {"note": "needs more than 12 GiB"}
    monkeypatch.setattr(metrics, "make_method", lambda *_: Failing(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        metrics.measure(**small)


def fake(function: object, arguments: dict, time_limit: float) -> dict:
    """Measurements without a process: scikit-learn takes 40 times as long, anomalib too long, another is killed."""
    name, images = arguments["method"], arguments["images"]
    if name == "anomalib":
        raise TimeoutError("takes more than 60 s")
    if name == "pooled":
        raise ChildProcessError("was killed by signal 9, perhaps for want of memory")
    seconds = images / 100 * (40 if name == "sklearn" else 1)
    values = {"pixel_AUROC/a": 0.5 + (1e-9 if name == "sklearn" else 0), "pixel_AUPRO/a": 0.25}
    return {"seconds": seconds, "processor_seconds": seconds, "peak_memory_bytes": images * 2**20, "values": values}


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, measure: object = fake) -> pd.DataFrame:
    monkeypatch.setattr(metrics, "apart", measure)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    metrics.metrics((20, 40), 32, 2, output_dir=folder)
    return pd.read_csv(folder / "evaluation_speed.csv")


def test_rows_are_written_compared_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch)
    frame = run(tmp_path, monkeypatch)
    assert frame["method"].tolist() == 2 * list(METHODS)
    assert set(frame) >= {"command", "seed", "versions", "device", "categories", "image_size", "category_bytes"}
    assert "scikit-learn" in frame["versions"][0]
    assert frame["device"].str.endswith(", 1 threads").all()
    row = frame[(frame["method"] == "sklearn") & (frame["images"] == 40)].iloc[0]
    assert (row["ratio"], row["compared_with"], row["difference_AUPRO"]) == (40, "per_category", 0)
    assert row["difference"] == pytest.approx(1e-9)
    failed = frame[frame["method"] == "anomalib"]
    assert failed["note"].tolist() == 2 * ["takes more than 60 s"]
    assert failed[["seconds", "processor_seconds", "ratio", "peak_memory_bytes", "difference"]].isna().all(axis=None)
    assert frame["note"].str.contains("killed by signal 9").sum() == 2
    assert (tmp_path / "evaluation_speed.png").stat().st_size > 10_000
    assert "16 (40) |" in render("<!-- table: evaluation_speed -->\n<!-- end -->", tmp_path)


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(function: object, arguments: dict, time_limit: float) -> dict:
        if arguments["method"] == "shuffled":
            raise KeyboardInterrupt
        return fake(function, arguments, time_limit)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, interrupted)
    assert pd.read_csv(tmp_path / "evaluation_speed.csv")["method"].tolist() == ["per_category", "functions"]


def test_values_that_differ_are_told(caplog: pytest.LogCaptureFixture) -> None:
    done = {"per_category": {"values": {"pixel_AUPRO/a": 0.25}}, "sklearn": {"values": {"pixel_AUPRO/a": 0.2502}}}
    assert metrics.compared("sklearn", done)["difference_AUPRO"] == pytest.approx(2e-4)
    assert "differ from those of scikit-learn" in caplog.text
    with pytest.raises(ValueError, match="one of two methods only: pixel_AP/a"):
        metrics.differences({"pixel_AP/a": 1.0}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": (59,)}, r"at least 4 images of each category, got \[59\] images of 15"),
        ({"images": ()}, "at least 4 images"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"time_limit": 0}, "time_limit must be positive"),
        ({"memory_limit": -1.0}, r"memory_limit must be positive, got -1\.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.metrics(**arguments)


def test_a_normal_image_has_an_empty_mask() -> None:
    maps = GeneratedMaps(images=100, image_size=32, categories=1)
    for index in range(8):
        anomaly_map, mask = maps.generate(index)
        assert mask.any() == maps.is_defective(index)
        assert np.ptp(anomaly_map) > 0
