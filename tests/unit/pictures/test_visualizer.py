# SPDX-License-Identifier: Apache-2.0
"""Pictures of images: the map lies where the defect is, and the decision is told."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image, ImageColor

from anomalib_uniad.geometry import Geometry
from anomalib_uniad.inference.heatmap import caption_height
from anomalib_uniad.pictures.visualizer import HeatmapVisualizer
from anomalib_uniad.transforms import CropAndPad

GEOMETRIES = [
    Geometry((64, 64), "pad"),
    Geometry((64, 64), crop=(0, 100, 80, 160)),
    Geometry((64, 64), "pad", crop=(0, 100, 80, 160)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", [(80, 320), (400, 260)])
def test_map_lies_on_the_defect(tmp_path: Path, geometry: Geometry, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 90, np.uint8)
    pixels[20:60, 140:180] = 255  # the defect
    path = tmp_path / "part.png"
    Image.fromarray(pixels).save(path)
    image = CropAndPad(geometry)(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    batch = ImageBatch(
        image=image,
        image_path=[str(path)],
        anomaly_map=(image[:, :1] > 0.9).float(),  # a model that finds it
        gt_mask=image[:, :1] > 0.9,
        pred_mask=image[:, :1] > 0.9,
        pred_label=torch.tensor([True]),
        pred_score=torch.tensor([0.75]),
    )
    module = SimpleNamespace(geometry=geometry, value_range=None, post_processor=SimpleNamespace())
    trainer = SimpleNamespace(default_root_dir=tmp_path, datamodule=None)
    HeatmapVisualizer().on_test_batch_end(trainer, module, None, batch, 0)
    (written,) = (tmp_path / "images").rglob("*.png")
    whole = np.asarray(Image.open(written).convert("RGB")).astype(int)
    assert whole.shape == (size[0] + caption_height(size[1]), 2 * size[1], 3)
    shown, heatmap = whole[: size[0], : size[1]], whole[: size[0], size[1] :]
    outline = (shown[..., 0] - shown[..., 1]) > 150
    hot = heatmap[..., 0] - heatmap[..., 2] > 40
    for marked in (outline, hot):
        rows, columns = marked.nonzero()
        assert abs(rows.min() - 20) <= 8
        assert abs(rows.max() - 59) <= 8
        assert abs(columns.min() - 140) <= 8
        assert abs(columns.max() - 179) <= 8
    assert (shown[outline == 0] == pixels[outline == 0]).mean() > 0.99, "the pixels of the file"
    seen = geometry.seen(size)
    outside = np.ones(size, bool)
    outside[seen.rows, seen.columns] = False
    assert (heatmap[outside] == pixels[outside]).all()


def test_predicted_folders_are_kept_apart(tmp_path: Path) -> None:
    """Images of equal names; and one that is too wide for JPEG with two pictures side by side."""
    files = [tmp_path / "parts" / product / "good" / "000.jpg" for product in ("bolt", "nut")]
    files.append(tmp_path / "parts" / "wide.jpg")
    for file, width in zip(files, (40, 40, 33_000), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 20)).save(file)
    trainer = SimpleNamespace(default_root_dir=tmp_path, datamodule=None)
    trainer.predict_dataloaders = [SimpleNamespace(dataset=SimpleNamespace(image_filenames=files))]
    visualizer = HeatmapVisualizer()
    visualizer.on_predict_start(trainer, None)
    for file in files:
        batch = ImageBatch(image=torch.zeros(1, 3, 8, 8), image_path=[str(file)], anomaly_map=torch.rand(1, 8, 8))
        visualizer.on_predict_batch_end(trainer, SimpleNamespace(), None, batch, 0)
    written = {file.relative_to(tmp_path / "images").as_posix() for file in (tmp_path / "images").rglob("*.*")}
    assert written == {"parts/bolt/good/000.jpg", "parts/nut/good/000.jpg", "parts/wide.jpg.png"}


@pytest.mark.parametrize(
    ("label", "product", "colour"),
    [(True, "nut", "#b71c1c"), (False, "nut", "#2e7d32"), (True, "", "#6a1b9a"), (None, None, "#616161")],
)
def test_the_decision_is_told(tmp_path: Path, label: bool | None, product: str | None, colour: str) -> None:
    path = tmp_path / "part.png"
    Image.new("RGB", (200, 60)).save(path)
    batch = ImageBatch(
        image=torch.zeros(1, 3, 8, 8),
        image_path=[str(path)],
        anomaly_map=torch.rand(1, 8, 8),
        pred_label=None if label is None else torch.tensor([label]),
    )
    outputs = SimpleNamespace(product=None if product is None else [product])
    trainer = SimpleNamespace(default_root_dir=tmp_path, datamodule=None)
    HeatmapVisualizer(tmp_path / "out").on_predict_batch_end(trainer, SimpleNamespace(), outputs, batch, 0)
    with Image.open(next((tmp_path / "out").rglob("*.png"))) as picture:
        assert picture.getpixel((399, picture.height - 1)) == ImageColor.getrgb(colour)
