# SPDX-License-Identifier: Apache-2.0
"""Augmented copies of training images: mirrored, turned, moved."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from anomalib_uniad.errors import InputError

Copies = list[str] | dict[str, list[str]]
"""Names of copies, for all products or for each product that has some."""

_ROTATION = re.compile(r"rotate_(any|[1-9]\d*)")
_SHIFT = re.compile(r"shift_([1-9]\d*)")
_KNOWN = "horizontal_flip, vertical_flip, rotate_<degrees, 1 to 359>, rotate_any and shift_<pixels>"


@dataclass(frozen=True)
class ImageCopy:
    """One copy of each image of a product; what it draws is always the same for the same image.

    Attributes:
        name (str): ``"horizontal_flip"`` (left and right change places), ``"vertical_flip"``, ``"rotate_90"`` or any
            other whole number of degrees (counter-clockwise, about the middle), ``"rotate_any"`` (by an angle drawn for
            each image), ``"shift_8"`` (by up to so many pixels in each direction, drawn for each image).
        number (int): How often the same name came before, so that it draws something else. Defaults to ``0``.

    Examples:
        >>> ImageCopy("horizontal_flip")(torch.tensor([[[1.0, 2.0]]]), 0)
        tensor([[[2., 1.]]])
    """

    name: str
    number: int = 0

    def __call__(self, image: torch.Tensor, position: int) -> torch.Tensor:
        """Make the copy of an image.

        Args:
            image (torch.Tensor): ``(C, H, W)``.
            position (int): Where it stands among the images of its product; what is drawn depends on it.

        Returns:
            torch.Tensor: The copy, of the same size. What came from outside is the image mirrored at its border.
        """
        if self.name == "horizontal_flip":
            return image.flip(-1)
        if self.name == "vertical_flip":
            return image.flip(-2)
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), self.number, position])
        if found := _SHIFT.fullmatch(self.name):
            pixels = int(found[1])
            return _move(image, 0, *rng.integers(-pixels, pixels, 2, endpoint=True).tolist())
        found = _ROTATION.fullmatch(self.name)
        degrees = rng.uniform(0, 360) if found is None or found[1] == "any" else float(found[1])
        if degrees % 90 == 0 and (degrees == 180 or image.shape[-2] == image.shape[-1]):  # exactly
            return image.rot90(int(degrees) // 90, (-2, -1))
        return _move(image, degrees)


def check_copies(copies: Any) -> Copies | None:
    """Return names of copies as plain lists.

    Args:
        copies (Any): A list of names, a mapping of products to such lists, or ``None``.

    Returns:
        Copies | None: The same.

    Raises:
        ValueError: If it is something else, or a name is unknown.

    Examples:
        >>> check_copies({"screw": ("rotate_90", "rotate_any")})
        {'screw': ['rotate_90', 'rotate_any']}
    """
    if copies is None:
        return None
    if isinstance(copies, Mapping):
        return {str(product): _check_names(names) for product, names in copies.items()}
    return _check_names(copies)


def copies_of(copies: Copies | None, product: str) -> list[ImageCopy]:
    """Return the copies that the images of a product get.

    Args:
        copies (Copies | None): As of :func:`check_copies`.
        product (str): Name of the product.

    Examples:
        >>> copies_of(["rotate_any", "rotate_any"], "screw")
        [ImageCopy(name='rotate_any', number=0), ImageCopy(name='rotate_any', number=1)]
    """
    names = copies.get(product, []) if isinstance(copies, dict) else copies or []
    return [ImageCopy(name, names[:index].count(name)) for index, name in enumerate(names)]


def _check_names(names: Any) -> list[str]:
    if not isinstance(names, Sequence) or isinstance(names, str):
        msg = f"feature_cache_copies must be a list of names, or a mapping of products to such lists, got {names!r}."
        raise InputError(msg)
    for name in names:
        rotation = _ROTATION.fullmatch(str(name))
        known = str(name) in {"horizontal_flip", "vertical_flip"} or _SHIFT.fullmatch(str(name))
        if not known and (rotation is None or (rotation[1] != "any" and int(rotation[1]) >= 360)):
            raise InputError(f"feature_cache_copies has {name!r}, but the copies that there are are {_KNOWN}.")
    return [str(name) for name in names]


def _move(image: torch.Tensor, degrees: float, down: int = 0, right: int = 0) -> torch.Tensor:
    """Turn an image (C, H, W) counter-clockwise about its middle, or move it."""
    height, width = image.shape[-2:]
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # From places in the copy to those in the image, both from -1 to 1.
    rows = [
        [cosine, -sine * height / width, -2 * right / width],
        [sine * width / height, cosine, -2 * down / height],
    ]
    theta = torch.tensor(rows, dtype=image.dtype, device=image.device)
    grid = functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    moved = functional.grid_sample(image[None], grid, "bicubic", padding_mode="reflection", align_corners=False)
    return moved[0]
