# SPDX-License-Identifier: Apache-2.0
"""UniAD on a small CIFAR-10: train, test, predict; one number for all classes; cached features."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.models import Padim
from PIL import Image

from anomalib_uniad import CIFAR10, UniAD
from cifar_files import make_cifar
from replay import METRICS
from small import SMALL, quiet_engine


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_cifar(tmp_path_factory.mktemp("data") / "CIFAR10", train=1)


def data(root: Path, **arguments) -> CIFAR10:
    return CIFAR10(root, verify=False, num_workers=0, train_batch_size=8, eval_batch_size=16, **arguments)


def model(**arguments) -> UniAD:
    chosen = {"layers": [0, 1, 2, 3, 4], "image_score": "mean", "seed": 3, "visualizer": False}
    return UniAD(**{**SMALL, **chosen, **arguments})


def train(root: Path, folder: Path, **arguments) -> tuple[dict, UniAD]:
    trained = model(**arguments)
    runner = quiet_engine(folder, max_epochs=2)
    return runner.train(trained, datamodule=data(root))[0], trained


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory) -> tuple[dict, UniAD, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return *train(root, folder), folder


def test_train_and_test(plain: tuple[dict, UniAD, Path]) -> None:
    results, trained, folder = plain
    image = {name for name in METRICS if name.startswith("image")}
    assert results.keys() == image, "in one pool, and nothing of pixels"
    assert trained.model.backbone.strides == [2, 4, 8, 16, 32]
    table = pd.read_csv(folder / "UniAD" / "CIFAR10" / "latest" / "metrics.csv", keep_default_na=False)
    assert table["category"].tolist() == ["CIFAR10", "mean"]
    assert table["note"][0] == f"{', '.join(name for name in METRICS if name not in image)}: no masks"
    assert table["thresholds"][0] == "test images (same_as_test)"
    assert float(table["image_AUROC"][0]) == pytest.approx(results["image_AUROC"])


def test_cached_features_are_those_of_the_images(root: Path, plain: tuple[dict, UniAD, Path], tmp_path: Path) -> None:
    results, trained, _ = plain
    for mode in ("memory", "disk"):
        cached, other = train(root, tmp_path / mode, feature_cache=mode, feature_cache_dir=tmp_path / "features")
        assert cached == pytest.approx(results, abs=1e-5)
        for (name, value), (_, same) in zip(trained.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(same, value, atol=1e-4, rtol=1e-4, msg=name)
    assert len(list((tmp_path / "features").rglob("features*"))) >= 2, "of training and validation images"


@pytest.mark.filterwarnings("ignore:The model has no thresholds")
def test_heatmaps_have_names_of_their_own(tmp_path: Path) -> None:
    root = make_cifar(tmp_path / "CIFAR10", train=1)
    quiet_engine(tmp_path / "none").predict(model(), datamodule=data(root))
    assert not list(tmp_path.rglob("*.png")), "without heatmaps, no files are needed"
    for _ in range(2):  # the second time, the images are there
        batches = quiet_engine(tmp_path).predict(model(visualizer=True), datamodule=data(root), return_predictions=True)
    paths = [path for batch in batches for path in batch.image_path]
    assert len(set(paths)) == len(paths) == 30
    pictures = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert len(pictures) == 60
    assert {"CIFAR10/test/cat/00003.png", "UniAD/CIFAR10/latest/images/test/cat/00003.png"} < pictures
    image = data(root)
    image.setup()
    stored = np.asarray(Image.open(root / "test" / "cat" / "00013.png"))
    assert np.array_equal(stored, image.test_data._images[13])
    (root / "test" / "dog" / "00005.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"dog.00005\.png is not the image of CIFAR-10"):
        quiet_engine(tmp_path).predict(model(visualizer=True), datamodule=data(root))
    assert (root / "test" / "dog" / "00005.png").read_bytes() == b"mine"


def test_no_room_for_images(tmp_path: Path) -> None:
    root = make_cifar(tmp_path / "CIFAR10", train=1)
    (root / "test").write_text("a file")
    with pytest.raises(OSError, match=r"Heatmaps need .*cannot be written.*--model\.visualizer false"):
        quiet_engine(tmp_path).train(model(visualizer=True), datamodule=data(root))


def test_other_models(root: Path, tmp_path: Path) -> None:
    small = {"pre_trained": False, "n_features": 8, "pre_processor": Padim.configure_pre_processor((32, 32))}
    padim = Padim("resnet18", layers=["layer1"], visualizer=False, **small)
    results = quiet_engine(tmp_path, max_epochs=1).train(padim, datamodule=data(root))[0]
    assert {name for name in results if name.startswith("image")} == {"image_AUROC", "image_F1Score"}
