# SPDX-License-Identifier: Apache-2.0
"""Features of a dataset instead of its images: computed once, then read in batches."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from anomalib_uniad.errors import InputError
from anomalib_uniad.transforms import named

from .feature_store import CacheWriter, MemoryWriter

FeatureDtype = Literal["float32", "float16"]
BATCH_SIZE = 16  # images that are embedded together
NO_MASK = 255  # fills the mask of an image that has none
UNKNOWN = -1  # label of an image that has none


def _without_features(target: type) -> Any:
    """Make items or arrays of a batch: anomalib's classes know no features."""

    def make(features: Any = None, **fields: Any) -> Any:
        del features
        return target(**fields)

    return make


@dataclass
class CachedBatch(ImageBatch):
    """A batch that brings its features; its images are placeholders of one pixel, as anomalib insists on images.

    Attributes:
        features (torch.Tensor | None): ``(B, C, h, w)``, in the type of the cache.
    """

    item_class: ClassVar[Any] = staticmethod(_without_features(ImageItem))
    numpy_class: ClassVar[Any] = staticmethod(_without_features(NumpyImageBatch))

    features: torch.Tensor | None = None


class CachedDataset(AnomalibDataset):
    """Takes the place of a dataset of images: the same samples in the same order, but batches of features.

    Args:
        source (AnomalibDataset): The dataset of images.

    Examples:
        >>> import pandas as pd
        >>> source = AnomalibDataset()
        >>> source._samples = pd.DataFrame({"image_path": ["a.png", "b.png", "c.png"]})
        >>> dataset = CachedDataset(source)
        >>> features = np.zeros((3, 8, 2, 2), np.float32)
        >>> dataset.fill({"features": features, "labels": np.zeros(3, np.int8)}, torch.device("cpu"))
        >>> batch = dataset.__getitems__([2, 0])
        >>> tuple(batch.features.shape), batch.image_path
        ((2, 8, 2, 2), ['c.png', 'a.png'])
    """

    def __init__(self, source: AnomalibDataset) -> None:
        super().__init__(source.augmentations)
        self.source = source
        self._samples = source.samples
        self._category = source.category
        self._image_path = [_path(path) for path in self.samples["image_path"]]
        masks = self.samples.get("mask_path", [None] * len(self))
        self._mask_path = [_path(path) for path in masks]
        self._features: torch.Tensor | None = None
        self._masks: torch.Tensor | None = None
        self._pin = False

    @property
    def name(self) -> str:
        """Name of the dataset of images."""
        return self.source.name

    @property
    def collate_fn(self) -> Callable:
        """Batches are collated already."""
        return hand_on

    def fill(self, arrays: dict[str, np.ndarray], device: torch.device) -> None:
        """Take the features, to the device of the training if there is room, so that batches need no transfer.

        Args:
            arrays (dict[str, np.ndarray]): ``features`` (n, C, h, w), ``labels`` (n,) with -1 for unknown and, for
                evaluation, ``masks`` (n, H, W) with 255 in that of an image without one.
            device (torch.device): Where the training is.
        """
        features = torch.from_numpy(arrays["features"])
        # The training needs room, too: features may have half of what is free.
        fits = device.type == "cuda" and arrays["features"].nbytes <= torch.cuda.mem_get_info(device)[0] // 2
        self._pin = device.type == "cuda" and not fits
        self._features = features.to(device) if fits else features
        self._labels = torch.from_numpy(np.array(arrays["labels"]))
        self._masks = torch.from_numpy(arrays["masks"]) if "masks" in arrays else None

    def release(self) -> None:
        """Let go of the features; Lightning keeps dataloaders until the next training."""
        self._features = self._masks = None

    def __getitem__(self, index: int) -> CachedBatch:  # type: ignore[override]
        """Get a batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, rows: list[int]) -> CachedBatch:
        """Get a batch; torch's dataloader calls this once instead of ``__getitem__`` for each row.

        Raises:
            RuntimeError: If the training is over.
        """
        if self._features is None:
            msg = "Features are there from the start of a training to its end; ask the datamodule for a new dataloader."
            raise RuntimeError(msg)
        index = torch.as_tensor(rows)
        label = self._labels[index]
        mask = None if self._masks is None else self._masks[index]
        image_path: list[Any] = [self._image_path[row] for row in rows]
        mask_path: list[Any] = [self._mask_path[row] for row in rows]
        # A label or a mask that one image of the batch does not have, the batch does not have.
        return CachedBatch(
            image=torch.zeros(1).expand(len(rows), 3, 1, 1),
            gt_label=None if bool((label == UNKNOWN).any()) else label.bool(),
            gt_mask=None if mask is None or bool((mask == NO_MASK).any()) else mask.bool(),
            image_path=None if image_path[0] is None else image_path,
            mask_path=None if mask_path[0] is None else mask_path,
            features=self._gather(self._features, index),
        )

    def _gather(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if features.device.type == "cuda":  # from pinned memory: an ordinary copy would wait for the device
            return features[index.pin_memory().to(features.device, non_blocking=True)]
        if not self._pin:
            return features[index]
        out = torch.empty((len(index), *features.shape[1:]), dtype=features.dtype, pin_memory=True)
        return torch.index_select(features, 0, index, out=out)


def hand_on(batch: Any) -> Any:
    """Collate function for batches that are collated already."""
    return batch


def compute_features(
    dataset: Any,
    transform: Callable[..., Any] | None,
    model: nn.Module,
    device: torch.device,
    writer: MemoryWriter | CacheWriter,
    dtype: FeatureDtype = "float32",
    masks: bool = False,
    num_workers: int = 0,
    progress: bool = False,
    check_space: Callable[[int, tuple[int, ...]], None] | None = None,
) -> None:
    """Read the images of a dataset as the dataset does, transform and embed them.

    Args:
        dataset (Any): An image dataset of anomalib.
        transform (Callable[..., Any] | None): What the pre-processor does with image and mask.
        model (nn.Module): Its ``extract`` turns images (B, 3, H, W) into features (B, C, h, w).
        device (torch.device): Where it is.
        writer (MemoryWriter | CacheWriter): Gets the arrays of :meth:`CachedDataset.fill`.
        dtype (str): Type in which features are kept: "float32" or "float16". Defaults to ``"float32"``.
        masks (bool): Keep the masks as well. Defaults to ``False``.
        num_workers (int): Processes that read images. Defaults to ``0``.
        progress (bool): Show a progress bar. Defaults to ``False``.
        check_space (Callable[[int, tuple[int, ...]], None] | None): Gets the number of bytes and the shape of the
            features after the first batch, before anything is written; may raise. Defaults to ``None``.
    """
    # A generator of its own: the training must not see other random numbers because of this.
    generator = torch.Generator()
    loader = DataLoader(dataset, BATCH_SIZE, num_workers=num_workers, collate_fn=list, generator=generator)
    count, started = len(dataset), False
    with _evaluating(model), tqdm(total=count, desc="Features", unit="image", disable=not progress) as bar:
        for items in loader:
            images, planes = _prepare(items, transform, type(dataset).__name__)
            features = _extract(model, images.to(device), dtype)
            if not started:
                shape, mask_shape = (count, *features.shape[1:]), (count, *planes.shape[1:])
                needed = int(np.prod(shape)) * features.itemsize + (int(np.prod(mask_shape)) if masks else 0)
                if check_space is not None:
                    check_space(needed, shape)
                writer.start("features", shape, dtype)
                writer.start("labels", (count,), "int8")
                if masks:
                    writer.start("masks", mask_shape, "uint8")
                started = True
            writer.append("features", features)
            labels = [UNKNOWN if item.gt_label is None else int(item.gt_label) for item in items]
            writer.append("labels", np.array(labels, dtype=np.int8))
            if masks:
                writer.append("masks", planes)
            bar.update(len(items))


def _prepare(items: list[Any], transform: Callable[..., Any] | None, dataset: str) -> tuple[torch.Tensor, np.ndarray]:
    """Do with each item what anomalib's pre-processor does with a batch; images (B, 3, H, W) and masks (B, H, W)."""
    images, masks = [], []
    for item in items:
        image, mask = getattr(item, "image", None), getattr(item, "gt_mask", None)
        if not torch.is_tensor(image) or image.dim() != 3 or image.shape[0] != 3:
            found = tuple(image.shape) if torch.is_tensor(image) else type(image).__name__
            msg = (
                f"The feature cache needs images of shape (3, H, W), but {dataset} gives {found}. "
                "Train without the cache (feature_cache=off)."
            )
            raise InputError(msg)
        if transform is not None:
            image, mask = named(item.image_path, transform, image, mask)
        images.append(image.as_subclass(torch.Tensor))
        masks.append(mask)
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        msg = f"Images have different sizes after the pre-processor: {sorted(sizes)}. Let it resize them."
        raise InputError(msg)
    size = tuple(images[0].shape[-2:])
    planes = np.full((len(items), *size), NO_MASK, dtype=np.uint8)
    for plane, mask in zip(planes, masks, strict=True):
        if mask is not None:
            plane[:] = mask.numpy().reshape(size) != 0
    return torch.stack(images), planes


def _extract(model: nn.Module, images: torch.Tensor, dtype: FeatureDtype) -> np.ndarray:
    weights = [p.dtype for p in model.parameters() if p.is_floating_point()]
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        features = model.extract(images.to(weights[0] if weights else None)).float()  # type: ignore[operator]
    kept = features.to(getattr(torch, dtype))
    if dtype == "float16" and not bool(torch.isfinite(kept).all()):
        msg = (
            f"Features reach {features.abs().max().item():.3g}, more than float16 can hold (65504). "
            "Keep them in float32 (feature_cache_dtype=float32)."
        )
        raise InputError(msg)
    return kept.cpu().numpy()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _path(path: Any) -> str | None:
    if isinstance(path, (list, tuple)):  # MVTec LOCO has several masks per image; its items name the first
        path = path[0] if path else None
    return str(path) if isinstance(path, (str, os.PathLike)) and str(path) else None
