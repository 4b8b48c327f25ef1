# SPDX-License-Identifier: Apache-2.0
"""Anomaly maps and masks at the size of the original images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.data import ImageBatch
from anomalib.data.utils import read_mask
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.metrics.batches import select

PixelResolution = Literal["model", "original"]

# Transforms that leave every pixel where it is, relative to the image.
_IN_PLACE = (v2.Resize, v2.Normalize, v2.ToDtype, v2.ToImage, v2.Identity, v2.GaussianBlur, v2.Grayscale)


def check_whole_images(pre_processor: Any, datasets: Sequence[Any] = ()) -> None:
    """Check that anomaly maps can be compared with the original images of anomalib's datasets.

    Raises:
        ValueError: If the pre-processor or the augmentations of a dataset crop or move images.
        FileNotFoundError: If images or masks are not there.
    """
    found = {"pre-processor": getattr(pre_processor, "transform", None)}
    found |= {f"dataset {type(data).__name__}": getattr(data, "augmentations", None) for data in datasets}
    for where, transform in found.items():
        steps = transform.transforms if isinstance(transform, v2.Compose) else [transform]
        moving = [type(step).__name__ for step in steps if step is not None and not isinstance(step, _IN_PLACE)]
        if moving:
            msg = (
                f"pixel_resolution 'original' needs anomaly maps of whole images, but the {where} has {moving[0]}. "
                "Take it out, or use pixel_resolution 'model'."
            )
            raise InputError(msg)
    tables = [table for data in datasets if (table := getattr(data, "samples", None)) is not None]
    for path in (path for table in tables for name in ("image_path", "mask_path") for path in table.get(name, ())):
        if isinstance(path, str | Path) and str(path) and not Path(path).is_file():
            msg = f"pixel_resolution 'original' reads {path}, which is not there."
            raise MissingFileError(msg)


def at_original_size(batch: ImageBatch, mask_paths: Mapping[str, str] | None = None) -> Iterator[ImageBatch]:
    """Resize maps to the size of their original images, and read the masks at that size.

    Args:
        batch (ImageBatch): Batch with ``image_path``, and ``mask_path`` where images have masks.
        mask_paths (Mapping[str, str] | None): Path of an image -> its mask, for batches without ``mask_path``:
            anomalib leaves it out where the first image has no mask. Defaults to ``None``.

    Yields:
        ImageBatch: One image each, with ``anomaly_map`` (bilinear), ``pred_mask`` (nearest neighbor) and ``gt_mask``
        ``(1, H, W)`` of the original size.

    Raises:
        FileNotFoundError: If an image or mask is not there.
        ValueError: If there is no path, or a mask has another size than its image.
    """
    for row in range(len(batch)):
        one: Any = select(batch, [row])
        height, width = _image_size(one.image_path[0] if one.image_path else None)
        changed: dict[str, torch.Tensor] = {}
        for name in ("anomaly_map", "pred_mask"):
            value = getattr(one, name, None)
            if value is not None:
                mode = "nearest" if value.dtype == torch.bool else "bilinear"
                shaped = value.reshape(1, 1, *value.shape[-2:]).float()
                resized = F.interpolate(shaped, size=(height, width), mode=mode)
                changed[name] = resized.to(value.dtype).reshape(1, height, width)
        if one.gt_mask is not None:
            mask = one.mask_path[0] if one.mask_path else (mask_paths or {}).get(one.image_path[0])
            changed["gt_mask"] = _read_mask(mask, one, (height, width))
        yield one.update(in_place=False, image=torch.zeros(1, 3, 1, 1).expand(1, 3, height, width), **changed)


def _image_size(path: str | None) -> tuple[int, int]:
    if path is None or not Path(path).is_file():
        msg = f"pixel_resolution 'original' needs the files of the images, but {path} is none. Use 'model'."
        raise MissingFileError(msg)
    with Image.open(path) as image:  # reads the header only
        width, height = image.size
    return height, width


def _read_mask(path: str | None, one: Any, size: tuple[int, int]) -> torch.Tensor:
    if path in {None, "", "None"}:  # anomalib's batches have "None" for images without a mask
        mask = one.gt_mask.bool()
        if bool(mask.any()) and not bool(mask.all()):
            msg = f"pixel_resolution 'original' needs masks in files, but {one.image_path[0]} has none. Use 'model'."
            raise InputError(msg)
        return mask.reshape(-1)[:1].expand(1, *size)  # all normal or all defective, at any size
    if not Path(str(path)).is_file():
        msg = f"The mask {path} of {one.image_path[0]} is not there."
        raise MissingFileError(msg)
    mask = torch.as_tensor(read_mask(str(path), as_tensor=True)).bool()
    if mask.shape[-2:] != size:
        msg = f"The mask {path} has {tuple(mask.shape[-2:])} pixels, its image {one.image_path[0]} has {size}."
        raise InputError(msg)
    return mask.reshape(1, *size)
