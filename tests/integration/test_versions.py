# SPDX-License-Identifier: Apache-2.0
"""Files that earlier versions wrote, see tools/version_files.py, are read and give the numbers stored beside them."""

import csv
import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from anomalib_uniad import UniAD
from anomalib_uniad.drift.predictions import read_predictions
from anomalib_uniad.errors import InputError
from anomalib_uniad.inference import Inspector
from anomalib_uniad.report.runs import read_runs
from anomalib_uniad.review.table import read_table
from anomalib_uniad.training.feature_store import FeatureStore

VERSIONS = Path(__file__).parents[1] / "versions"
EPSILON = 1e-4  # of scores between 0 and 1, and relative of raw ones: other versions of torch, OpenVINO, processors


@pytest.fixture(params=["0.1.0", "0.2.0.dev0"])
def folder(request: pytest.FixtureRequest) -> Path:
    return VERSIONS / request.param


def pixels_of(name: str) -> np.ndarray:
    return np.asarray(Image.open(VERSIONS / name))


def load(folder: Path, **arguments: Path) -> Inspector:
    """The exported file; an older OpenVINO than wrote it need not read it, but refuses it with a sentence."""
    wrote = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["versions"]["openvino"]
    try:
        return Inspector(folder / "model.xml", threads=1, **arguments)
    except InputError as error:
        if Version(version("openvino")) >= Version(wrote):
            raise
        assert "is not a model that OpenVINO can read" in str(error)
        pytest.skip(f"written by OpenVINO {wrote}")


def test_checkpoint(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model = UniAD.load_from_checkpoint(folder / "model.ckpt").eval()
    images = np.stack([pixels_of(name) for name in expected["images"]])
    with torch.no_grad():
        found = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert found.pred_score.tolist() == pytest.approx(expected["scores"], abs=EPSILON)
    assert found.anomaly_map.mean(dim=(1, 2, 3)).tolist() == pytest.approx(expected["map_means"], abs=EPSILON)
    assert found.anomaly_map.amax(dim=(1, 2, 3)).tolist() == pytest.approx(expected["map_maxima"], abs=EPSILON)
    for score, label, wanted in zip(found.pred_score, found.pred_label, expected["labels"], strict=True):
        assert label == wanted or abs(score - 0.5) < EPSILON
    assert model.hparams["seed"] == 5
    assert model.metadata.training["epochs"] == 2


def test_exported_file(folder: Path) -> None:
    inspector = load(folder)
    with (folder / "predicted.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    for row in rows:
        found = inspector.inspect(pixels_of(row["path"].removeprefix("tests/versions/")))
        assert found.raw_score == pytest.approx(float(row["raw_score"]), rel=EPSILON)
        assert found.score == pytest.approx(float(row["normalised_score"]), abs=EPSILON)
        assert found.product == row["category"]
        assert found.decision == row["decision"] or abs(found.score - 0.5) < EPSILON
        if row["threshold"]:
            assert found.threshold == pytest.approx(float(row["threshold"]), rel=EPSILON)


@pytest.mark.parametrize("name", ["0.2.0.dev0"])
def test_thresholds(name: str) -> None:
    folder = VERSIONS / name
    inspector = load(folder, thresholds=folder / "thresholds.yaml")
    found = inspector.inspect(pixels_of("Products/bolt/test/good/000.png"))
    assert (found.product, found.threshold, found.decision) == ("bolt", 1.25, "anomalous")


def test_tables(folder: Path) -> None:
    """Those of a test in `report` and `review`, that of a prediction in `drift`."""
    (run,) = read_runs([folder])
    assert run.categories == ["bolt", "washer"]
    assert run.about["model"] == "UniAD"
    assert all(math.isfinite(run.values["image_AUROC", category]) for category in run.categories)
    assert len(run.predictions) == 30
    table = read_table(folder / "predictions.csv")
    assert sum(len(group.images) for group in table.groups) + len(table.left_out) == 30
    scores = read_predictions([folder / "predicted.csv"])
    assert scores


def test_feature_cache(folder: Path, tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(folder / "features", tmp_path / "features"))
    entries = store.entries()
    assert sum(entry.meta["images"] for entry in entries) == 8
    for entry in entries:
        arrays = store.open(entry.key)
        assert arrays is not None
        assert len(arrays["features"]) == entry.meta["images"]
