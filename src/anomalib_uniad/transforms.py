# SPDX-License-Identifier: Apache-2.0
"""Images are brought to the size of a model: how, and each alone."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from anomalib.data import ImageBatch, ImageItem
from torchvision.transforms.v2 import Compose, InterpolationMode, Transform
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import Mask

from anomalib_uniad.errors import InputError
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


def steps_of(transform: Any) -> list[Any]:
    """Return the steps of a transform; none of ``None``."""
    if isinstance(transform, Compose):
        return list(transform.transforms)
    return [] if transform is None else [transform]


def named(path: Any, transform: Any, image: Any, mask: Any) -> tuple[Any, Any]:
    """Transform an image and its mask; an error of the crop gets the image's path."""
    try:
        return transform(image, mask)
    except InputError as error:
        raise InputError(f"{path or 'An image'}: {error}.") from error


@dataclass
class ResizedBatch(ImageBatch):
    """A batch whose images went through :class:`CropAndPad` already."""

    resized: ClassVar[bool] = True


class ResizeEach:
    """Collate function that brings each image to the size of a model before the batch is made.

    anomalib does so for ``Resize`` alone; images of different sizes are otherwise stretched to the largest one of their
    batch, so that scores would depend on who shares it.

    Args:
        resize (CropAndPad): What is done to each image.
    """

    def __init__(self, resize: CropAndPad) -> None:
        self.resize = resize

    def __call__(self, items: list[ImageItem]) -> ResizedBatch:
        """Make a batch.

        Args:
            items (list[ImageItem]): Images (3, H, W) with or without masks (H, W), each of its own size.

        Returns:
            ResizedBatch: Of the same images.

        Raises:
            ValueError: If the crop does not lie in an image; the message names it.
        """
        for item in items:
            item.image, item.gt_mask = named(item.image_path, self.resize, item.image, item.gt_mask)
        return cast("ResizedBatch", ResizedBatch.collate(items))
