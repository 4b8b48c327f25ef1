# SPDX-License-Identifier: Apache-2.0
"""Scores do not depend on who shares a batch."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib.data import Folder, ImageItem
from torchvision.tv_tensors import Image, Mask

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.transforms import CropAndPad, ResizeEach
from helpers import write_image, write_mask
from small import SMALL, quiet_engine

SIZES = [(40, 120), (64, 64), (120, 50), (90, 90)]


pytestmark = pytest.mark.filterwarnings("ignore:.*(never validated|does not have many workers)")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A product whose images have different sizes."""
    root = tmp_path_factory.mktemp("data")
    for number, size in enumerate(SIZES):
        write_image(root / "part/train/good" / f"{number}.png", size, number)
        write_image(root / "part/test/good" / f"{number}.png", size, 10 + number)
        mask = write_image(root / "part/test/bad" / f"{number}.png", size, 20 + number, defect=True)
        write_mask(root / "part/ground_truth/bad" / f"{number}_mask.png", mask)
    return root


def uniad(**arguments: Any) -> UniAD:
    return UniAD(**SMALL, seed=0, visualizer=False, **arguments)


def scores(model: Any, datamodule: Any, folder: Path) -> pd.Series:
    predictions = quiet_engine(folder).predict(model, datamodule=datamodule)
    assert predictions is not None
    found = {
        path: score.item()
        for batch in predictions
        for path, score in zip(batch.image_path, batch.pred_score, strict=True)
    }
    return pd.Series(found).sort_index()


@pytest.mark.parametrize("arguments", [{}, {"resize_mode": "pad"}, {"crop": [2, 3, 36, 44]}], ids=str)
def test_scores_of_any_batch(root, tmp_path, arguments: dict[str, Any]) -> None:
    model = uniad(**arguments)

    def data(size: int) -> MultiCategory:
        return MultiCategory(root=root, eval_batch_size=size, num_workers=0, val_split_mode="same_as_test")

    one, all_together = (scores(model, data(size), tmp_path) for size in (1, 8))
    pd.testing.assert_series_equal(one, all_together, rtol=1e-4)
    folder = Folder(
        "part",
        root=root / "part",
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/bad",
        val_split_mode="same_as_test",
        eval_batch_size=8,
        num_workers=0,
    )
    pd.testing.assert_series_equal(one, scores(model, folder, tmp_path), rtol=1e-4)


def test_each_image_alone() -> None:
    resize = CropAndPad(Geometry((16, 16), "pad"))
    items = [
        ImageItem(image=Image(torch.rand(3, *size)), gt_mask=Mask(torch.ones(size, dtype=torch.bool)), image_path="a")
        for size in SIZES
    ]
    expected = [resize(item.image) for item in items]
    batch = ResizeEach(resize)(items)
    assert batch.image is not None
    assert batch.gt_mask is not None
    assert batch.image.equal(torch.stack(expected))
    assert batch.gt_mask.sum(dim=(1, 2)).tolist() == [16 * 5, 16 * 16, 16 * 7, 16 * 16]


def test_an_image_that_is_too_small_is_named() -> None:
    item = ImageItem(image=Image(torch.rand(3, 40, 60)), image_path="a/b.png")
    with pytest.raises(InputError, match=r"^a/b.png: the image has 40 x 60 pixels .* needs at least 50 x 50\.$"):
        ResizeEach(CropAndPad(Geometry((16, 16), crop=(0, 0, 50, 50))))([item])


def test_other_models_find_the_datamodule_as_it_was(root, tmp_path) -> None:
    datamodule = MultiCategory(root=root, num_workers=0, val_split_mode="same_as_test")
    scores(uniad(resize_mode="pad"), datamodule, tmp_path)
    assert datamodule.external_collate_fn is None
