# SPDX-License-Identifier: Apache-2.0
"""Transforms that bring images to the size of a model."""

from typing import Any

import torch
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize, Transform
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import Mask

from anomalib_uniad.geometry import Geometry


class CropAndPad(Transform):
    """Crop, and resize without a change of proportions; the rest is padding.

    The edge of the image is repeated in the padding, which has neither the step of a colour of its own nor the second
    defect of a mirrored image. Masks are resized to the nearest pixel and padded with zeros.

    Args:
        geometry (Geometry): Crop, mode and size.

    Raises:
        ValueError: When it is called, if the crop does not lie in an image.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.size, self.resize_mode, self.crop = geometry.image_size, geometry.resize_mode, geometry.crop

    @property
    def geometry(self) -> Geometry:
        """Crop, mode and size."""
        return Geometry(self.size, self.resize_mode, self.crop)

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Image ``(..., C, H, W)`` or mask ``(..., H, W)`` -> the same with ``size`` pixels."""
        del params  # This variable is not used.
        size = inpt.shape[-2:]
        seen, inside = self.geometry.seen(size), self.geometry.covered(size)
        mask = isinstance(inpt, Mask)
        cut = transforms.crop(inpt, *seen)
        resized = transforms.resize(
            cut,
            [inside.height, inside.width],
            InterpolationMode.NEAREST if mask else InterpolationMode.BILINEAR,
            antialias=not mask,
        )
        below, right = self.size[0] - inside.height - inside.top, self.size[1] - inside.width - inside.left
        padding = [inside.left, inside.top, right, below]
        return transforms.pad(resized, padding, padding_mode="constant" if mask else "edge")


def resize_of(transform: Any) -> Transform | None:
    """Return the first step of a pre-processor's transform, if it brings all images to one size.

    Args:
        transform (Any): The transform.

    Returns:
        Transform | None: A ``Resize`` to height and width, or a :class:`CropAndPad`; ``None`` if it is something else.
    """
    first = next(iter(steps_of(transform)), None)
    two_sides = isinstance(first, Resize) and first.size is not None and len(first.size) == 2
    return first if isinstance(first, CropAndPad) or two_sides else None


def steps_of(transform: Any) -> list[Any]:
    """Return the steps of a transform; none of ``None``."""
    if isinstance(transform, Compose):
        return list(transform.transforms)
    return [] if transform is None else [transform]
