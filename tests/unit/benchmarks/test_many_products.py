# SPDX-License-Identifier: Apache-2.0
"""Products that differ in colour and direction."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import many_products
from anomalib_uniad import MultiCategory
from anomalib_uniad.synthetic.synthetic_products import CATEGORIES
from helpers import make_mvtec_like


def test_products_that_differ(tmp_path: Path) -> None:
    source = make_mvtec_like(tmp_path / "six", CATEGORIES, (16, 16), train=2, good=1, bad=1)
    many_products.many_products(tmp_path / "many", source, 27)
    datamodule = MultiCategory(root=tmp_path / "many", val_split_mode="none", num_workers=0)
    datamodule.setup()
    assert len(datamodule.categories) == 27
    assert {"washer", "washer_1", "washer_3", "blister_4"} <= set(datamodule.categories)
    assert "washer_4" not in datamodule.categories
    names = [folder / "test/broken/000.png" for folder in sorted((tmp_path / "many").glob("washer*"))]
    images = [cv2.imread(str(name)) for name in names]
    masks = [cv2.imread(str(name).replace("test/broken/000", "ground_truth/broken/000_mask"), 0) > 0 for name in names]
    assert len({image.tobytes() for image in images}) == 4
    for image, mask in zip(images, masks, strict=True):
        assert mask.sum() == 16
        grey = image.astype(float).mean(-1)
        assert grey[mask].min() > grey[~mask].max()  # the defect, which is bright, is where the mask is
    assert len({mask.tobytes() for mask in masks}) == 4


def test_colours() -> None:
    picture = np.array([[[30, 20, 10], [0, 0, 0]]], np.uint8)  # blue, green, red
    turned = many_products.vary(picture, 1)
    assert turned.tolist() == [[[0, 0, 0]], [[round(0.55 * 10), round(0.85 * 20), 30]]]
    with pytest.raises(ValueError, match="count must be at most 30, got 31"):
        many_products.many_products(count=31)
