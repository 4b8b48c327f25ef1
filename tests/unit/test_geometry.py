# SPDX-License-Identifier: Apache-2.0
"""Where an image lies in the input of a model."""

from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import Image, Mask

from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Box, Geometry, fitted
from anomalib_uniad.transforms import CropAndPad


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), Box(0, 0, 64, 64)),
        ((100, 400), Box(24, 0, 16, 64)),  # wide
        ((400, 100), Box(0, 24, 64, 16)),  # tall
        ((300, 299), Box(0, 0, 64, 64)),  # 63.8 columns
        ((1, 1000), Box(31, 0, 1, 64)),  # at least one row
        ((63, 21), Box(0, 21, 64, 21)),
    ],
)
def test_padding(size: tuple[int, int], expected: Box) -> None:
    assert Geometry((64, 64), "pad").covered(size) == expected
    assert Geometry((64, 64), "pad", crop=(2, 3, *size)).covered((1100, 1100)) == expected
    assert Geometry((64, 64)).covered(size) == Box(0, 0, 64, 64)


def test_the_sides_are_rounded_alone() -> None:
    for height in range(1, 90):
        for width in range(1, 90, 7):
            scale = min(64 / height, 48 / width)
            exact = (max(1, height * scale), max(1, width * scale))
            assert all(abs(a - b) <= 0.5 for a, b in zip(fitted((height, width), (64, 48)), exact, strict=True))


@pytest.mark.parametrize("crop", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 5), (0, 0, 5, 5.0), "0,0,5,5", 5])
def test_what_is_no_crop(crop: Any) -> None:
    with pytest.raises(InputError, match=r"crop must be \[top, left, height, width\] in pixels"):
        Geometry((64, 64), crop=crop)


def test_unknown_mode() -> None:
    with pytest.raises(InputError, match="resize_mode must be 'stretch' or 'pad', got 'letterbox'"):
        Geometry((64, 64), "letterbox")  # type: ignore[arg-type]


def test_crop_and_pad() -> None:
    """Against single steps: crop, resize, edges repeated; the mask gets zeros."""
    image, mask = Image(torch.rand(3, 50, 90)), Mask(torch.ones(50, 90, dtype=torch.uint8))
    made, of_mask = CropAndPad(Geometry((40, 40), "pad", crop=(10, 20, 15, 60)))(image, mask)
    inside = transforms.resize(image[..., 10:25, 20:80], [10, 40], antialias=True)
    assert made[:, 15:25].equal(inside)
    assert made[:, :15].equal(inside[:, :1].expand(3, 15, 40))
    assert made[:, 25:].equal(inside[:, -1:].expand(3, 15, 40))
    assert of_mask.sum() == 10 * 40
    assert of_mask[15:25].all()


def test_masks_stay_sharp() -> None:
    mask = Mask(torch.zeros(40, 80, dtype=torch.bool))
    mask[10:20, 20:60] = True
    _, resized = CropAndPad(Geometry((20, 20), "pad"))(Image(torch.rand(3, 40, 80)), mask)
    assert resized.dtype == torch.bool
    assert resized[5:15].equal(mask[::4, ::4])
