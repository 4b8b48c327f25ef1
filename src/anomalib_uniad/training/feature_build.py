# SPDX-License-Identifier: Apache-2.0
"""Computes the features of all images of a dataset, once."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .cached_dataset import NO_MASK, UNKNOWN

logger = logging.getLogger(__name__)

FeatureDtype = Literal["float32", "float16"]
BATCH_SIZE = 16


class ArrayWriter(Protocol):
    """Where the arrays go."""

    def start(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Begin an array."""

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next rows of an array."""


class MemoryWriter:
    """Keeps arrays in memory.

    Attributes:
        arrays (dict[str, np.ndarray]): Name -> array.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._written: dict[str, int] = {}

    def start(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Begin an array; all of ``shape`` has to be appended to it later."""
        self.arrays[name] = np.empty(shape, dtype)
        self._written[name] = 0

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next rows."""
        start = self._written[name]
        self._written[name] = start + len(array)
        self.arrays[name][start : start + len(array)] = array


@dataclass(frozen=True)
class FeatureBuilder:
    """Reads the images of a dataset as the dataset does, and embeds them.

    Args:
        dataset (Any): An image dataset of anomalib.
        transform (Callable[..., Any] | None): What the pre-processor does with image and mask.
        model (nn.Module): Its ``extract`` turns images (B, 3, H, W) into features (B, C, h, w).
        device (torch.device): Where it is.
        dtype (str): Type in which features are kept: "float32" or "float16".
        masks (bool): Keep the masks as well.
        num_workers (int): Processes that read images. Defaults to ``0``.
        progress (bool): Show a progress bar. Defaults to ``False``.
        after_batch (Callable[[], None]): Called after each batch of images; may raise. Defaults to nothing.
    """

    dataset: Any
    transform: Callable[..., Any] | None
    model: nn.Module
    device: torch.device
    dtype: FeatureDtype
    masks: bool
    num_workers: int = 0
    progress: bool = False
    after_batch: Callable[[], None] = lambda: None

    def build(self, writer: ArrayWriter, check_space: Callable[[int, tuple[int, ...]], None]) -> None:
        """Compute all features.

        Args:
            writer (ArrayWriter): Gets ``features``, ``labels`` and ``masks``.
            check_space (Callable[[int, tuple[int, ...]], None]): Gets the number of bytes and the shape of the
                features after the first batch, before anything is written; may raise.

        Raises:
            ValueError: If an item is no image, images have different sizes after all transforms, or float16 is too
                small for the features.
        """
        # A generator of its own: the training must not see other random numbers because of this.
        loader = DataLoader(
            self.dataset,
            batch_size=BATCH_SIZE,
            num_workers=self.num_workers,
            collate_fn=list,
            generator=torch.Generator(),
        )
        count, started = len(self.dataset), False
        sizes: set[tuple[int, ...]] = set()
        with (
            _evaluating(self.model),
            tqdm(total=count, desc="Features", unit="image", disable=not self.progress) as bar,
        ):
            for items in loader:
                sizes.update(tuple(item.image.shape[-2:]) for item in items if torch.is_tensor(item.image))
                images, masks = self._prepare(items)
                features = self._extract(images)
                if not started:
                    shape = (count, *features.shape[1:])
                    mask_shape = (count, *images.shape[-2:])
                    bytes_of_masks = int(np.prod(mask_shape)) if self.masks else 0
                    check_space(int(np.prod(shape)) * features.itemsize + bytes_of_masks, shape)
                    writer.start("features", shape, self.dtype)
                    writer.start("labels", (count,), "int8")
                    if self.masks:
                        writer.start("masks", mask_shape, "uint8")
                    started = True
                writer.append("features", features)
                labels = [UNKNOWN if item.gt_label is None else int(item.gt_label) for item in items]
                writer.append("labels", np.array(labels, dtype=np.int8))
                if self.masks:
                    writer.append("masks", masks)
                bar.update(len(items))
                self.after_batch()
        if len(sizes) > 1:
            logger.warning(
                "The images have %d different sizes. Without the feature cache, anomalib first resizes the images of "
                "a batch to the largest of them; with it, each image is treated alone, as in predictions.",
                len(sizes),
            )

    def _prepare(self, items: list[Any]) -> tuple[torch.Tensor, np.ndarray]:
        """Do with each item what anomalib's pre-processor does with a batch."""
        images, masks = [], []
        for item in items:
            image, mask = getattr(item, "image", None), getattr(item, "gt_mask", None)
            if not torch.is_tensor(image) or image.dim() != 3 or image.shape[0] != 3:
                found = tuple(image.shape) if torch.is_tensor(image) else type(image).__name__
                msg = (
                    f"The feature cache needs images of shape (3, H, W), but {type(self.dataset).__name__} gives "
                    f"{found}. Train without the cache (feature_cache=off)."
                )
                raise ValueError(msg)
            if self.transform is not None:
                image, mask = self.transform(image, mask)
            images.append(image.as_subclass(torch.Tensor))
            masks.append(mask)
        sizes = {tuple(image.shape) for image in images}
        if len(sizes) > 1:
            msg = f"Images have different sizes after the pre-processor: {sorted(sizes)}. Let it resize them."
            raise ValueError(msg)
        size = tuple(images[0].shape[-2:])
        planes = np.full((len(items), *size), NO_MASK, dtype=np.uint8)
        for plane, mask in zip(planes, masks, strict=True):
            if self.masks and mask is not None:
                plane[:] = mask.numpy().reshape(size) != 0
        return torch.stack(images), planes

    def _extract(self, images: torch.Tensor) -> np.ndarray:
        weights = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        images = images.to(self.device, weights[0] if weights else None)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features = self.model.extract(images).float()  # type: ignore[operator]
        kept = features.to(getattr(torch, self.dtype))
        if self.dtype == "float16" and not bool(torch.isfinite(kept).all()):
            msg = (
                f"Features reach {features.abs().max().item():.3g}, more than float16 can hold (65504). "
                "Keep them in float32 (feature_cache_dtype=float32)."
            )
            raise ValueError(msg)
        return kept.cpu().numpy()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
