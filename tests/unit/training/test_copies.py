# SPDX-License-Identifier: Apache-2.0
"""Augmented copies of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_uniad.training.copies import ImageCopy, check_copies, copies_of

IMAGE = torch.from_numpy(np.random.default_rng(0).random((3, 24, 24), np.float32))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("horizontal_flip", Image.Transpose.FLIP_LEFT_RIGHT),
        ("vertical_flip", Image.Transpose.FLIP_TOP_BOTTOM),
        ("rotate_90", Image.Transpose.ROTATE_90),
        ("rotate_180", Image.Transpose.ROTATE_180),
        ("rotate_270", Image.Transpose.ROTATE_270),
    ],
)
def test_exact_copies_are_those_of_pillow(name: str, expected: Image.Transpose) -> None:
    planes = [Image.fromarray(plane).transpose(expected) for plane in IMAGE.numpy()]
    np.testing.assert_array_equal(ImageCopy(name)(IMAGE, 5), np.stack([np.asarray(plane) for plane in planes]))


@pytest.mark.parametrize("size", [(60, 60), (50, 80)])
def test_any_angle_is_that_of_pillow(size: tuple[int, int]) -> None:
    """Inside the circle that is there in both; outside of it, Pillow has black."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    plane = np.sin(x / 9) + np.cos(y / 7)  # smooth, as the two interpolate differently
    for degrees in (15, 90, 200):
        expected = Image.fromarray(plane).rotate(degrees, Image.Resampling.BICUBIC)
        copy = ImageCopy(f"rotate_{degrees}")(torch.from_numpy(plane)[None], 0)[0]
        inside = np.hypot(y - (size[0] - 1) / 2, x - (size[1] - 1) / 2) < min(size) / 2 - 3
        np.testing.assert_allclose(copy.numpy()[inside], np.asarray(expected)[inside], atol=0.02)
        assert copy.shape == size
        assert copy.abs().max() < 2.1  # the corners have parts of the image


def test_shifts_are_whole_pixels_and_drawn_for_each_image() -> None:
    """The image moves within itself and its mirror images."""
    around = np.pad(IMAGE.numpy(), [(0, 0), (3, 3), (3, 3)], "symmetric")
    windows = {(y, x): around[:, y : y + 24, x : x + 24] for y in range(7) for x in range(7)}
    found = []
    for position in range(40):
        copy = ImageCopy("shift_3")(IMAGE, position).numpy()
        matches = [place for place, window in windows.items() if np.allclose(window, copy, atol=1e-5)]
        assert len(matches) == 1
        found += matches
    assert len(set(found)) > 20
    assert {y for y, _ in found} == {x for _, x in found} == set(range(7))


def test_what_is_drawn_is_always_the_same() -> None:
    first, second = copies_of(["rotate_any", "rotate_any"], "screw")
    assert first(IMAGE, 2).equal(ImageCopy("rotate_any")(IMAGE, 2))
    different = [first(IMAGE, 2), first(IMAGE, 3), second(IMAGE, 2)]
    assert not any(different[i].allclose(different[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_names_of_products() -> None:
    copies = check_copies({"screw": ["rotate_90", "shift_8"], 4711: ()})
    assert copies == {"screw": ["rotate_90", "shift_8"], "4711": []}
    assert copies_of(copies, "screw") == [ImageCopy("rotate_90"), ImageCopy("shift_8")]
    assert copies_of(copies, "cable") == copies_of(None, "screw") == []
    assert copies_of(["vertical_flip"], "cable") == [ImageCopy("vertical_flip")]


@pytest.mark.parametrize("name", ["rotate", "rotate_0", "rotate_360", "rotate_1.5", "shift_0", "flip", 90])
def test_unknown_names_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"copies has {name!r}, but .* horizontal_flip, .* shift_<pixels>"):
        check_copies({"screw": ["rotate_90", name]})


@pytest.mark.parametrize("copies", ["rotate_90", 90, {"screw": "rotate_90"}])
def test_other_types_are_refused(copies) -> None:
    with pytest.raises(ValueError, match="must be a list of names, or a mapping of products to such lists, got "):
        check_copies(copies)
