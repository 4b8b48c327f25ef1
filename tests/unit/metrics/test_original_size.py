# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.metrics import AUROC
from anomalib.pre_processing import PreProcessor
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from torchvision.transforms import v2

from anomalib_uniad.geometry import Geometry
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.metrics.original_size import at_original_size, check_whole_images, judged
from replay import make_batch

SIZES = [(20, 30), (16, 16), (9, 40)]


@pytest.fixture
def batch(tmp_path):
    """Three images of different sizes, the first one without a defect and without a mask."""
    batch = make_batch(["a"] * 3, [0, 1, 1])
    images, masks = [], []
    for row, (height, width) in enumerate(SIZES):
        images.append(str(tmp_path / f"{row}.png"))
        Image.new("RGB", (width, height)).save(images[-1])
        masks.append(str(tmp_path / f"{row}_mask.png") if row else None)
        if row:
            mask = np.zeros((height, width), np.uint8)
            mask[2:7, 3:9] = 255
            Image.fromarray(mask).save(masks[-1])
    return batch.update(in_place=False, image_path=images, mask_path=masks)


def test_values_at_the_original_size(batch):
    metrics = CategoryMetrics([AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_")], pixel_resolution="original")
    metrics.update(batch)
    maps, masks = [], []
    for row, size in enumerate(SIZES):
        maps.append(F.interpolate(batch.anomaly_map[None, row : row + 1], size, mode="bilinear").ravel())
        mask = torch.zeros(size)
        mask[2:7, 3:9] = float(row > 0)
        masks.append(mask.ravel())
    expected = roc_auc_score(torch.cat(masks), torch.cat(maps))
    assert float(next(iter(metrics.compute().values.values()))) == pytest.approx(expected, abs=1e-6)


def test_one_image_each(batch):
    for row, (one, size) in enumerate(zip(at_original_size(batch), SIZES, strict=True)):
        assert one.anomaly_map.shape == one.gt_mask.shape == one.pred_mask.shape == (1, *size)
        assert one.pred_mask.dtype == torch.bool
        assert bool(one.gt_mask.any()) is bool(row)
    without = batch.update(in_place=False, gt_mask=None, pred_mask=None)
    assert all(one.gt_mask is None and one.pred_mask is None for one in at_original_size(without))


def test_errors(batch, tmp_path):
    def first(**changed):
        return list(at_original_size(batch.update(in_place=False, **changed)))

    with pytest.raises(FileNotFoundError, match="needs the files of the images, but None is none"):
        first(image_path=None)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png is none"):
        first(image_path=["nowhere.png"] * 3)
    with pytest.raises(FileNotFoundError, match=r"The mask gone\.png of .*1\.png is not there"):
        first(mask_path=[None, "gone.png", "gone.png"])
    with pytest.raises(ValueError, match=r"needs masks in files, but .*1\.png has none"):
        first(mask_path=None)
    with pytest.raises(ValueError, match=r"2_mask\.png has \(9, 40\) pixels, its image .*1\.png has \(16, 16\)"):
        first(mask_path=[None, str(tmp_path / "2_mask.png"), str(tmp_path / "2_mask.png")])


def test_cropped_images_are_refused():
    whole = v2.Compose([v2.Resize((8, 8)), v2.Normalize([0.5] * 3, [0.5] * 3)])
    check_whole_images(PreProcessor(whole))
    check_whole_images(None)
    check_whole_images(SimpleNamespace(transform=None))
    with pytest.raises(ValueError, match="the pre-processor has CenterCrop"):
        check_whole_images(PreProcessor(v2.Compose([v2.Resize((8, 8)), v2.CenterCrop(6)])))


def test_a_crop_lies_where_it_was(batch):
    """Of the original image, its map and mask, the crop alone is judged."""
    geometry = Geometry(tuple(batch.anomaly_map.shape[-2:]), crop=(1, 2, 8, 12))
    for row, one in enumerate(at_original_size(batch, geometry=geometry)):
        assert one.anomaly_map.shape == one.pred_mask.shape == (1, 8, 12)
        expected = F.interpolate(batch.anomaly_map[None, row : row + 1], (8, 12), mode="bilinear")
        torch.testing.assert_close(one.anomaly_map, expected[0])
        mask = torch.zeros(8, 12, dtype=torch.bool)
        mask[1:6, 1:7] = row > 0
        assert one.gt_mask[0].equal(mask)


@pytest.mark.parametrize("resolution", ["model", "original"])
def test_padding_is_not_judged(batch, resolution):
    height, width = batch.anomaly_map.shape[-2:]
    geometry = Geometry((height, width), "pad")
    for row, (one, size) in enumerate(zip(judged(batch, resolution, geometry), SIZES, strict=True)):
        box = geometry.covered(size)
        expected = batch.anomaly_map[row : row + 1, box.rows, box.columns]
        if resolution == "original":
            expected = F.interpolate(expected[None], size, mode="bilinear")[0]
            assert one.gt_mask.sum() == 5 * 6 * (row > 0)
        torch.testing.assert_close(one.anomaly_map, expected)
        assert one.gt_mask.shape == one.anomaly_map.shape
    assert geometry.covered(SIZES[2]).height < height, "something was cut"


def test_metrics_without_padding(batch):
    """A model that is wrong in the padding alone is not wrong."""
    geometry = Geometry(tuple(batch.anomaly_map.shape[-2:]), "pad")
    masks = torch.rand(batch.anomaly_map.shape) > 0.5
    covered = torch.zeros_like(masks)
    for row, size in enumerate(SIZES):
        box = geometry.covered(size)
        covered[row, box.rows, box.columns] = True
    maps = torch.where(covered, masks.float(), 1 - masks.float())
    found = {}
    for name, used in (("pad", geometry), ("stretch", None)):
        metric = AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_")
        metrics = CategoryMetrics([metric], geometry=used)
        metrics.update(batch.update(in_place=False, anomaly_map=maps, gt_mask=masks))
        found[name] = next(iter(metrics.compute().values.values()))
    assert found["pad"] == 1 > found["stretch"]
