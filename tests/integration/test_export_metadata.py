# SPDX-License-Identifier: Apache-2.0
"""What exported files say about themselves."""

from importlib.metadata import version
from pathlib import Path

import openvino
import pytest
import torch
from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.inference.metadata import ModelMetadata
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx, openvino and nncf warn about themselves


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (72, 90), "cable": (64, 64)})
    data = MultiCategory(root=root, train_batch_size=2, eval_batch_size=4, num_workers=0)
    runner = quiet_engine(tmp_path_factory.mktemp("train"), max_epochs=2)
    runner.fit(UniAD(**SMALL, seed=5), datamodule=data)
    return Path(runner.best_model_path)


def check(metadata: ModelMetadata, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    assert metadata.model == "UniAD"
    assert metadata.version == version("anomalib-uniad")
    assert metadata.image_size == (64, 64)
    assert metadata.categories == ("bottle", "cable")
    assert metadata.category_thresholds == saved["category_thresholds"]
    assert set(metadata.category_thresholds["cable"]) == {"image", "pixel"}
    state = {name: float(v) for name, v in saved["state_dict"].items() if name.startswith("post_processor")}
    assert metadata.thresholds == {x: state[f"post_processor._{x}_threshold"] for x in ("image", "pixel")}
    assert metadata.normalization == {
        name: state[f"post_processor.{name}"] for name in ("image_min", "image_max", "pixel_min", "pixel_max")
    }
    assert metadata.training == {"dataset": "Products", "images": 8, "epochs": 2, "seed": 5}


@pytest.mark.parametrize("compression", [None, "fp16", "int8"])
def test_openvino(checkpoint: Path, tmp_path: Path, compression: str | None) -> None:
    path = Engine(default_root_dir=tmp_path, logger=False).export(
        UniAD(**SMALL), "openvino", export_root=tmp_path, ckpt_path=checkpoint, compression_type=compression
    )
    check(ModelMetadata.read(openvino.Core().read_model(path), path), checkpoint)


def test_onnx(checkpoint: Path, tmp_path: Path) -> None:
    path = Engine(default_root_dir=tmp_path, logger=False).export(
        UniAD(**SMALL), "onnx", export_root=tmp_path, ckpt_path=checkpoint
    )
    check(ModelMetadata.read(openvino.Core().read_model(path), path), checkpoint)


def test_torch(checkpoint: Path, tmp_path: Path) -> None:
    path = Engine(default_root_dir=tmp_path, logger=False).export(
        UniAD(**SMALL), "torch", export_root=tmp_path, ckpt_path=checkpoint
    )
    check(torch.load(path, weights_only=False)["model"].metadata, checkpoint)


def test_a_model_that_was_not_trained() -> None:
    metadata = UniAD(**SMALL).metadata
    assert metadata.to_properties() == {
        "model": "UniAD",
        "version": version("anomalib-uniad"),
        "image_size": "[64, 64]",
    }
