# SPDX-License-Identifier: Apache-2.0
"""Anomaly maps and masks of what is judged: without padding, in the pixels of the model or of the original images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from anomalib.data import ImageBatch
from torch.nn import functional as F
from torchvision.transforms import v2

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.geometry import Box, Geometry
from anomalib_uniad.image_files import read_mask, size_of
from anomalib_uniad.metrics.batches import select
from anomalib_uniad.transforms import CropAndPad

PixelResolution = Literal["model", "original"]

# Transforms that leave every pixel where it is, relative to the image, and the one whose geometry is known.
_IN_PLACE = (CropAndPad, v2.Resize, v2.Normalize, v2.ToDtype, v2.ToImage, v2.Identity, v2.GaussianBlur, v2.Grayscale)


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
            raise InputError(
                f"pixel_resolution 'original' needs anomaly maps of whole images, but the {where} has {moving[0]}. "
                "Take it out, or use pixel_resolution 'model'."
            )
    tables = [table for data in datasets if (table := getattr(data, "samples", None)) is not None]
    for path in (path for table in tables for name in ("image_path", "mask_path") for path in table.get(name, ())):
        if isinstance(path, str | Path) and str(path) and not Path(path).is_file():
            raise MissingFileError(f"pixel_resolution 'original' reads {path}, which is not there.")


def judged(
    batch: ImageBatch,
    resolution: PixelResolution,
    geometry: Geometry | None = None,
    mask_paths: Mapping[str, str] | None = None,
) -> Iterator[ImageBatch]:
    """Give maps and masks of the pixels that are judged.

    Padding is none of them, and with ``"original"`` only those of a crop are: the others have no map.

    Args:
        batch (ImageBatch): Batch with ``anomaly_map``, and with ``image_path`` if images are padded.
        resolution (PixelResolution): Size at which maps are compared with masks.
        geometry (Geometry | None): How images became the model's input. Defaults to ``None``, stretched.
        mask_paths (Mapping[str, str] | None): As of :func:`at_original_size`. Defaults to ``None``.

    Yields:
        ImageBatch: The batch as it is, if there is no padding, or one image each.
    """
    if resolution == "original":
        yield from at_original_size(batch, mask_paths, geometry)
    elif geometry is None or geometry.resize_mode == "stretch" or not batch.image_path:
        yield batch
    else:
        for row, path in enumerate(batch.image_path):
            size = geometry.least if geometry.crop is not None else size_of(path)
            yield _cut(select(batch, [row]), geometry.covered(size))


def at_original_size(
    batch: ImageBatch, mask_paths: Mapping[str, str] | None = None, geometry: Geometry | None = None
) -> Iterator[ImageBatch]:
    """Resize maps to the size of their original images, and read the masks at that size.

    Args:
        batch (ImageBatch): Batch with ``image_path``, and ``mask_path`` where images have masks.
        mask_paths (Mapping[str, str] | None): Path of an image -> its mask, for batches without ``mask_path``:
            anomalib leaves it out where the first image has no mask. Defaults to ``None``.
        geometry (Geometry | None): How images became the model's input. Defaults to ``None``, stretched.

    Yields:
        ImageBatch: One image each, with ``anomaly_map`` (bilinear), ``pred_mask`` (nearest neighbor) and ``gt_mask``
        ``(1, H, W)`` of the original size; of a crop, its part.

    Raises:
        FileNotFoundError: If an image or mask is not there.
        ValueError: If there is no path, or a mask has another size than its image.
    """
    for row in range(len(batch)):
        one: Any = select(batch, [row])
        size = _image_size(one.image_path[0] if one.image_path else None)
        seen = Box(0, 0, *size)
        if geometry is not None:
            seen, one = geometry.seen(size), _cut(one, geometry.covered(size))
        changed: dict[str, torch.Tensor] = {}
        for name in ("anomaly_map", "pred_mask"):
            value = getattr(one, name, None)
            if value is not None:
                mode = "nearest" if value.dtype == torch.bool else "bilinear"
                shaped = value.reshape(1, 1, *value.shape[-2:]).float()
                resized = F.interpolate(shaped, size=(seen.height, seen.width), mode=mode)
                changed[name] = resized.to(value.dtype).reshape(1, seen.height, seen.width)
        if one.gt_mask is not None:
            path = one.mask_path[0] if one.mask_path else (mask_paths or {}).get(one.image_path[0])
            changed["gt_mask"] = _read_mask(path, one, size)[:, seen.rows, seen.columns]
        image = torch.zeros(1, 3, 1, 1).expand(1, 3, seen.height, seen.width)
        yield one.update(in_place=False, image=image, **changed)


def _cut(batch: Any, box: Box) -> Any:
    """Cut maps and masks of a batch."""
    values = {name: getattr(batch, name, None) for name in ("anomaly_map", "pred_mask", "gt_mask")}
    cut = {name: value[..., box.rows, box.columns] for name, value in values.items() if value is not None}
    image = torch.zeros(1, 3, 1, 1).expand(len(batch), 3, box.height, box.width)
    return batch.update(in_place=False, image=image, **cut)


def _image_size(path: str | None) -> tuple[int, int]:
    if path is None or not Path(path).is_file():
        msg = f"pixel_resolution 'original' needs the files of the images, but {path} is none. Use 'model'."
        raise MissingFileError(msg)
    return size_of(path)


def _read_mask(path: str | None, one: Any, size: tuple[int, int]) -> torch.Tensor:
    if path in {None, "", "None"}:  # anomalib's batches have "None" for images without a mask
        mask = one.gt_mask.bool()
        if bool(mask.any()) and not bool(mask.all()):
            msg = f"pixel_resolution 'original' needs masks in files, but {one.image_path[0]} has none. Use 'model'."
            raise InputError(msg)
        return mask.reshape(-1)[:1].expand(1, *size)  # all normal or all defective, at any size
    if not Path(str(path)).is_file():
        raise MissingFileError(f"The mask {path} of {one.image_path[0]} is not there.")
    mask = torch.from_numpy(read_mask(str(path)))
    if mask.shape[-2:] != size:
        msg = f"The mask {path} has {tuple(mask.shape[-2:])} pixels, its image {one.image_path[0]} has {size}."
        raise InputError(msg)
    return mask.reshape(1, *size)
