# SPDX-License-Identifier: Apache-2.0
"""Pictures of images that are cropped or padded: the map lies where the defect is."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_uniad.geometry import Geometry
from anomalib_uniad.model.visualizer import HeatmapVisualizer
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
        pred_mask=image[:, :1] > 0.9,
        pred_label=torch.tensor([True]),
    )
    visualizer = HeatmapVisualizer(fields=["image"], overlay_fields=[("image", ["anomaly_map"])])
    visualizer.text_config["enable"] = False
    post_processor = SimpleNamespace()
    module = SimpleNamespace(geometry=geometry, value_range=None, post_processor=post_processor)
    trainer = SimpleNamespace(default_root_dir=tmp_path, datamodule=None)
    visualizer.on_test_batch_end(trainer, module, None, batch, 0)
    (written,) = (tmp_path / "images").rglob("*.png")
    shown, overlay = np.split(np.asarray(Image.open(written).convert("RGB")).astype(int), 2, axis=1)
    defect = shown.min(axis=-1) > 170
    hot = overlay[..., 0] - overlay[..., 2] > 0
    assert 0.01 < defect.mean() < 0.4
    assert (defect & hot).sum() / (defect | hot).sum() > 0.7
