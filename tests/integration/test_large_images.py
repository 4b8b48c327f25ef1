# SPDX-License-Identifier: Apache-2.0
"""Crop, padding and tiles from training to prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference import ModelMetadata, predict
from helpers import write_image, write_mask
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves

MODES: dict[str, dict[str, Any]] = {
    "pad": {"resize_mode": "pad"},
    "crop": {"crop": [4, 10, 50, 100]},
    "tiles": {"tiles": [1, 3]},
    "all": {
        "resize_mode": "pad",
        "crop": [4, 10, 50, 100],
        "tiles": [1, 2],
        "tile_overlap": 0.25,
        "image_score": "top",
        "score_top_fraction": 0.05,
    },
}
SIZES = [(60, 180), (64, 128), (120, 110)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Wide images of different sizes."""
    root = tmp_path_factory.mktemp("data")
    for number, size in enumerate(SIZES):
        write_image(root / "part/train/good" / f"{number}.png", size, number)
        write_image(root / "part/test/good" / f"{number}.png", size, 10 + number)
        mask = write_image(root / "part/test/bad" / f"{number}.png", size, 20 + number, defect=True)
        write_mask(root / "part/ground_truth/bad" / f"{number}_mask.png", mask)
    return root


def train(root: Path, folder: Path, **arguments: Any) -> tuple[UniAD, dict[str, float]]:
    model = UniAD(**{**SMALL, "layers": (0, 1)}, seed=0, visualizer=False, **arguments)
    data = MultiCategory(root=root, train_batch_size=2, eval_batch_size=4, num_workers=0, val_split_mode="same_as_test")
    engine = quiet_engine(folder, max_epochs=1)
    engine.fit(model, datamodule=data)
    learned = {name: float(getattr(model.post_processor, name)) for name in ("image_threshold", "pixel_max")}
    engine.trainer.save_checkpoint(folder / "model.ckpt")
    return model, learned


@pytest.mark.parametrize("mode", ["crop", "all"])
def test_the_same_with_and_without_feature_cache(root, tmp_path, mode: str) -> None:
    plain, learned = train(root, tmp_path / "off", **MODES[mode])
    cached, of_cache = train(root, tmp_path / "memory", feature_cache="memory", **MODES[mode])
    for name, value in plain.model.transformer.state_dict().items():
        torch.testing.assert_close(cached.model.transformer.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert of_cache == pytest.approx(learned, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_checkpoint_and_exported_file(root, tmp_path, mode: str) -> None:
    """One rule from training to prediction without torch."""
    train(root, tmp_path, **MODES[mode])
    model = UniAD.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    expected = {}
    for path in sorted(root.rglob("test/*/*.png")):
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            expected[str(path)] = model(image).pred_score.item()
    predict(model.to_openvino(tmp_path / "export"), [root / "part" / "test"], tmp_path / "predictions")
    table = pd.read_csv(tmp_path / "predictions" / "predictions.csv")
    assert dict(zip(table.path, table.normalised_score, strict=True)) == pytest.approx(expected, abs=1e-3)
    data = MultiCategory(root=root, eval_batch_size=4, num_workers=0, val_split_mode="same_as_test")
    batches = quiet_engine(tmp_path / "predict").predict(model, datamodule=data)
    scores = {path: s for b in batches or [] for path, s in zip(b.image_path, b.pred_score.tolist(), strict=True)}
    assert scores == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", ["model", "original"])
def test_metrics_of_a_run(root, tmp_path, resolution: str) -> None:
    model, _ = train(root, tmp_path, **MODES["all"])
    assert model.evaluator is not None
    model.evaluator.pixel_resolution = resolution
    data = MultiCategory(root=root, eval_batch_size=4, num_workers=0, val_split_mode="same_as_test")
    (results,) = quiet_engine(tmp_path / "test").test(model, datamodule=data)
    assert np.isfinite(results["pixel_AUROC"])


def test_metadata() -> None:
    model = UniAD(**SMALL, **MODES["all"])
    metadata = model.metadata
    assert (metadata.image_size, metadata.resize_mode, metadata.crop) == ((64, 112), "pad", (4, 10, 50, 100))
    assert ModelMetadata.from_properties(metadata.to_properties(), "x").geometry == model.geometry
    assert UniAD(**SMALL).metadata.resize_mode is UniAD(**SMALL).metadata.crop is None
