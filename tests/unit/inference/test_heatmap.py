# SPDX-License-Identifier: Apache-2.0
"""Maps lie on the image where they belong."""

import numpy as np
import pytest

from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.inference.heatmap import draw_heatmap, map_to_image

# Geometry, size of the image, and where one hot square of the 64 x 64 map lies in it.
PLACES = [
    (Geometry((64, 64)), (32, 128), (slice(8, 16), slice(64, 96))),  # stretched
    (Geometry((64, 64), "pad"), (32, 128), (slice(0, 16), slice(64, 96))),  # rows 24 to 40 show the image
    (Geometry((64, 64), "pad"), (128, 32), (slice(32, 64), slice(16, 32))),  # columns 24 to 40
    (Geometry((64, 64), crop=(10, 20, 64, 64)), (90, 100), (slice(26, 42), slice(52, 68))),
    (Geometry((64, 64), "pad", crop=(4, 8, 32, 128)), (50, 200), (slice(4, 20), slice(72, 104))),
]


def hot_square() -> np.ndarray:
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[16:32, 32:48] = 1
    return anomaly_map


@pytest.mark.parametrize(("geometry", "size", "place"), PLACES, ids=str)
def test_place_in_the_image(geometry: Geometry, size: tuple[int, int], place: tuple[slice, slice]) -> None:
    found = map_to_image(hot_square(), size, geometry)
    assert found.shape == size
    expected = np.zeros(size, bool)
    expected[place] = True
    assert ((found > 0.5) == expected).all()  # false where it is NaN
    outside = np.ones(size, bool)
    seen = geometry.seen(size)
    outside[seen.rows, seen.columns] = False
    assert (np.isnan(found) == outside).all()


@pytest.mark.parametrize(("geometry", "size", "place"), PLACES, ids=str)
def test_place_in_the_picture(geometry: Geometry, size: tuple[int, int], place: tuple[slice, slice]) -> None:
    image = np.full((*size, 3), 100, np.uint8)
    drawn = np.asarray(draw_heatmap(image, map_to_image(hot_square(), size, geometry))).astype(int)
    red = (drawn[..., 0] > 100) & (drawn[..., 2] < 100)
    assert red[place].mean() > 0.75
    red[place] = False
    assert red.sum() < 0.25 * red[place].size, "and nowhere else, but for the soft edge"
    outside = np.isnan(map_to_image(hot_square(), size, geometry))
    assert (drawn[outside] == 100).all()
    assert (drawn[~outside] != 100).any(axis=-1).all()


def test_image_smaller_than_the_crop() -> None:
    with pytest.raises(InputError, match=r"crop \[10, 20, 64, 64\] needs at least 74 x 84"):
        map_to_image(hot_square(), (60, 60), PLACES[3][0])
