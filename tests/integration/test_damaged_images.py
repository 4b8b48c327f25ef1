# SPDX-License-Identifier: Apache-2.0
"""Files that cannot be used are named when a run starts, before features are computed or a step is made."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import MVTecAD
from lightning.pytorch import Callback
from PIL import Image

from anomalib_uniad import UniAD
from anomalib_uniad.data import MetaFile, MultiCategory
from anomalib_uniad.data.make_meta import make_meta
from anomalib_uniad.errors import InputError
from helpers import make_mvtec_like, write_image
from small import SMALL, quiet_engine

LOADERS = {"num_workers": 0, "train_batch_size": 2, "eval_batch_size": 2}
DATA = {
    "own folders": lambda root: MultiCategory(root=root, **LOADERS),
    "wrapped class": lambda root: MultiCategory("MVTecAD", root=root, **LOADERS),
    "anomalib's": lambda root: MVTecAD(root=root, category="bottle", **LOADERS),
    "meta files": lambda root: MetaFile(root=root, **LOADERS),
}


class NothingStarts(Callback):
    """Fails when a training goes on after its setup."""

    def on_fit_start(self, trainer, pl_module):
        del trainer, pl_module
        pytest.fail("the training has started")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_mvtec_like(tmp_path / "products", ["bottle", "cable"])
    make_meta(root)
    return root


def fit(root: Path, data: str, cache: str = "off") -> None:
    model = UniAD(**SMALL, feature_cache=cache, evaluator=False, visualizer=False)
    quiet_engine(root.parent, NothingStarts(), max_epochs=1).fit(model, datamodule=DATA[data](root))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("cache", ["off", "memory"])
def test_damaged_and_empty_files(root, data, cache):
    damaged, empty = root / "bottle/train/good/001.png", root / "bottle/test/broken/000.png"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    empty.write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)^2 (problems in|of \d+ files) .*") as error:
        fit(root, data, cache)
    for name in ("bottle/train/good/001.png", "bottle/test/broken/000.png", "it is empty", "it is cut off"):
        assert name in str(error.value)


@pytest.mark.parametrize("data", DATA)
def test_more_than_8_bits(root, data):
    path = root / "bottle/train/good/002.png"
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"002\.png.*more than 8 bits .*value_range"):
        fit(root, data)


@pytest.mark.slow
def test_names_that_are_no_text(root, tmp_path):
    """From the training to the files of a test: such names are no reason to stop."""
    odd = os.fsdecode(b"cab\xffle\n")
    (root / "cable").rename(root / odd)
    for folder, end in (("test/broken", ".png"), ("ground_truth/broken", "_mask.png")):
        (root / odd / folder / f"000{end}").rename(root / odd / folder / f"{odd}{end}")
    longest = root / "bottle/train/good" / (os.fsdecode(b"\xfe" * 251) + ".png")
    (root / "bottle/train/good/000.png").rename(longest)
    model = UniAD(**SMALL, product_calibration=True, lr_schedule="wsd", lr_decay_fraction=0.5, early_stopping=True)
    engine = quiet_engine(tmp_path / "runs", max_epochs=1)
    engine.fit(model, datamodule=DATA["own folders"](root))
    engine.test(model, datamodule=DATA["own folders"](root))
    run = tmp_path / "runs/UniAD/products/latest"
    rows = list(csv.DictReader((run / "predictions.csv").read_text().splitlines(keepends=True)))
    assert {row["category"] for row in rows} == {"bottle", "cab\\udcffle\n"}
    assert len(list((run / "images" / odd).rglob("*.png"))) == sum(row["category"] != "bottle" for row in rows)


@pytest.mark.slow
def test_unequal_products_and_constant_images(tmp_path):
    """Nothing is made up about a product of two images beside one of 2,000, and black images are no reason to stop."""
    for name, count in {"many": 2000, "rare": 2, "black": 20}.items():
        for number in range(count):
            write_image(tmp_path / f"products/{name}/good/{number}.png", (16, 16), 1000 * len(name) + number)
        for number in range(3):
            write_image(tmp_path / f"products/{name}/bad/{number}.png", (16, 16), 900 + number, defect=True)
    for path in (tmp_path / "products/black/good").iterdir():
        Image.new("RGB", (16, 16)).save(path)
    model = UniAD(**SMALL, feature_norm="standard", product_calibration=True, visualizer=False)
    datamodule = MultiCategory(root=tmp_path / "products", num_workers=0, train_batch_size=32, eval_batch_size=32)
    engine = quiet_engine(tmp_path / "runs", max_epochs=1)
    engine.fit(model, datamodule=datamodule)
    (results,) = engine.test(model, datamodule=datamodule)
    assert set(results) >= {f"image_AUROC/{name}" for name in ("many", "rare", "black")}
    assert all(0 <= value <= 1 for value in results.values())
    assert math.isfinite(model.category_thresholds["many"]["image"])
    assert math.isnan(model.category_thresholds["rare"]["image"])
    rows = csv.DictReader((tmp_path / "runs/UniAD/products/latest/metrics.csv").read_text().splitlines())
    assert {row["category"]: row["threshold_rule"] for row in rows}["rare"].startswith(
        "none: 1 trained and 0 other good"
    )
    predictions = csv.DictReader((tmp_path / "runs/UniAD/products/latest/predictions.csv").read_text().splitlines())
    assert all(math.isfinite(float(row["raw_score"])) and not row["error"] for row in predictions)


def test_masks_of_another_size(root, caplog):
    masks = root / "cable/ground_truth/broken"
    Image.new("L", (64, 64)).save(masks / "001_mask.png")
    copy = root / "cable/test/good/000.png"
    copy.write_bytes((root / "cable/train/good/000.png").read_bytes())
    datamodule = DATA["own folders"](root)
    datamodule.setup()
    assert "1 masks contradict their labels, first: " in caplog.text
    assert "1 test images are copies of training images, first: " in caplog.text
    Image.new("L", (32, 64), 255).save(masks / "000_mask.png")
    with pytest.raises(InputError, match=r"000_mask\.png \(it has 32 x 64 pixels, but its image has 64 x 64"):
        fit(root, "own folders")
