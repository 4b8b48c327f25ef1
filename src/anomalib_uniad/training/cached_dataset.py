# SPDX-License-Identifier: Apache-2.0
"""Features of a dataset instead of its images: computed once, then read in batches."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy as shallow_copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch
from torch import nn
from torch.utils.data import DataLoader, Subset
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


class CachedPart(NamedTuple):
    """Features of some rows of a dataset, of the images as they are or of one copy of each.

    Attributes:
        rows (Sequence[int]): The m rows, each once.
        arrays (dict[str, np.ndarray]): ``features`` (m, C, h, w), ``labels`` (m,) with -1 for unknown and, for
            evaluation, ``masks`` (m, H, W) with 255 in that of an image without one.
    """

    rows: Sequence[int]
    arrays: dict[str, np.ndarray]


class CachedDataset(AnomalibDataset):
    """Takes the place of a dataset of images: the same samples in the same order, but batches of features.

    Where a row has copies, one of its versions is drawn each time, with torch's global generator: an epoch has as many
    batches as without copies. After :meth:`sample`, an image is drawn for each row instead.

    Args:
        source (AnomalibDataset): The dataset of images.

    Examples:
        >>> import pandas as pd
        >>> source = AnomalibDataset()
        >>> source._samples = pd.DataFrame({"image_path": ["a.png", "b.png", "c.png"]})
        >>> dataset = CachedDataset(source)
        >>> features = np.zeros((3, 8, 2, 2), np.float32)
        >>> arrays = {"features": features, "labels": np.zeros(3, np.int8)}
        >>> dataset.fill([CachedPart([0, 1, 2], arrays)], torch.device("cpu"))
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
        self._features: list[torch.Tensor] = []  # of each part, or all of them in one on the device
        self._masks: list[torch.Tensor] = []
        self._pin = False
        # With sampling: where in 1 the part of each product ends, and its rows.
        self._sampled: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @property
    def name(self) -> str:
        """Name of the dataset of images."""
        return self.source.name

    @property
    def collate_fn(self) -> Callable:
        """Batches are collated already."""
        return hand_on

    def fill(self, parts: Sequence[CachedPart], device: torch.device) -> None:
        """Take the features, to the device of the training if there is room, so that batches need no transfer.

        Args:
            parts (Sequence[CachedPart]): The images of all rows, then copies of some or all of them.
            device (torch.device): Where the training is.
        """
        versions = np.zeros(len(self), np.int64)  # how many each row has
        most = np.bincount(np.concatenate([part.rows for part in parts])).max()
        places = np.zeros((len(self), most), np.int64)  # of the versions, among the rows of all parts
        labels = np.full(len(self), UNKNOWN, np.int8)
        self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])[:-1].tolist()
        for start, part in zip(self._starts, parts, strict=True):
            rows = np.asarray(part.rows)
            places[rows, versions[rows]] = start + np.arange(len(rows))
            versions[rows] += 1
            labels[rows] = part.arrays["labels"]
        self._versions, self._places, self._labels = map(torch.from_numpy, (versions, places, labels))
        features = [torch.from_numpy(part.arrays["features"]) for part in parts]
        # The training needs room, too: features may have half of what is free.
        size = sum(part.nbytes for part in features)
        fits = device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 2
        self._pin = device.type == "cuda" and not fits
        self._features = [_join(features, device)] if fits else features
        self._masks = [torch.from_numpy(part.arrays["masks"]) for part in parts if "masks" in part.arrays]

    def without_copies(self) -> "CachedDataset":
        """The same rows, but of each the image as it is: no copy, and nothing drawn."""
        plain = shallow_copy(self)
        plain._places, plain._sampled = self._places[:, :1], None
        return plain

    def sample(self, products: Sequence[Sequence[int]], shares: torch.Tensor) -> None:
        """From now on, draw images by product.

        Args:
            products (Sequence[Sequence[int]]): Rows of each of P products, each row once.
            shares (torch.Tensor): Part of the draws that each product gets ``(P,)``; the parts make 1.
        """
        self._sampled = shares.cumsum(0), [torch.as_tensor(rows) for rows in products]

    def features_of(self, rows: Sequence[int]) -> Iterator[torch.Tensor]:
        """Features ``(b, C, h, w)`` of the images of rows, some at a time."""
        for some in torch.as_tensor(rows).split(BATCH_SIZE):
            yield self._gather(self._features, self._places[some, 0])

    def release(self) -> None:
        """Let go of the features; Lightning keeps dataloaders until the next training."""
        self._features, self._masks = [], []

    def __getitem__(self, index: int) -> CachedBatch:  # type: ignore[override]
        """Get a batch of one image."""
        return self.__getitems__([index])

    def __getitems__(self, rows: list[int]) -> CachedBatch:
        """Get a batch; torch's dataloader calls this once instead of ``__getitem__`` for each row.

        Raises:
            RuntimeError: If the training is over.
        """
        if not self._features:
            msg = "Features are there from the start of a training to its end; ask the datamodule for a new dataloader."
            raise RuntimeError(msg)
        index = torch.as_tensor(rows)
        if self._sampled is not None:
            index = self._sample(index, *self._sampled)
            rows = index.tolist()
        label = self._labels[index]
        places = self._places[index, self._draw(index)]
        mask = self._gather(self._masks, places) if self._masks else None
        image_path: list[Any] = [self._image_path[row] for row in rows]
        mask_path: list[Any] = [self._mask_path[row] for row in rows]
        # A label or a mask that one image of the batch does not have, the batch does not have.
        return CachedBatch(
            image=torch.zeros(1).expand(len(rows), 3, 1, 1),
            gt_label=None if bool((label == UNKNOWN).any()) else label.bool(),
            gt_mask=None if mask is None or bool((mask == NO_MASK).any()) else mask.bool(),
            image_path=None if image_path[0] is None else image_path,
            mask_path=None if mask_path[0] is None else mask_path,
            features=self._gather(self._features, places, self._pin),
        )

    def _sample(self, rows: torch.Tensor, ends: torch.Tensor, products: Sequence[torch.Tensor]) -> torch.Tensor:
        """Draw an image for each row (b,), which has its part of 1, so that an epoch has its share of each product."""
        product, image = torch.rand(2, len(rows), dtype=torch.float64)
        found = torch.searchsorted(ends, (rows + product) / len(self)).clamp(max=len(products) - 1)
        pairs = zip(found.tolist(), image.tolist(), strict=True)
        return torch.stack([products[number][int(part * len(products[number]))] for number, part in pairs])

    def _draw(self, rows: torch.Tensor) -> torch.Tensor | int:
        """Draw a version of each row (b,)."""
        if self._places.shape[1] == 1:
            return 0
        return (torch.rand(len(rows)) * self._versions[rows]).long()

    def _gather(self, parts: list[torch.Tensor], places: torch.Tensor, pin: bool = False) -> torch.Tensor:
        """Rows (b, ...) of parts (m, ...), counted through all parts."""
        first = parts[0]
        if first.device.type == "cuda":  # from pinned memory: an ordinary copy would wait for the device
            return first[places.pin_memory().to(first.device, non_blocking=True)]
        out = torch.empty((len(places), *first.shape[1:]), dtype=first.dtype, pin_memory=pin)
        if len(parts) == 1:
            return torch.index_select(first, 0, places, out=out)
        found = [(bisect_right(self._starts, place) - 1, place) for place in places.tolist()]
        return torch.stack([parts[part][place - self._starts[part]] for part, place in found], out=out)


def _join(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Bring parts (m, ...) to the device, one behind the other, without a second copy of all of them."""
    if len(parts) == 1:
        return parts[0].to(device)
    out = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype, device=device)
    for own, part in zip(out.split([len(part) for part in parts]), parts, strict=True):
        own.copy_(part)
    return out


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
    rows: Sequence[int] | None = None,
    copy: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
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
        rows (Sequence[int] | None): Rows of the dataset; ``None`` is all. Defaults to ``None``.
        copy (Callable[[torch.Tensor, int], torch.Tensor] | None): What is done with each transformed image (3, H, W),
            given its place among ``rows``. Defaults to ``None``, nothing.
    """
    # A generator of its own: the training must not see other random numbers because of this.
    generator = torch.Generator()
    images_read = dataset if rows is None else Subset(dataset, rows)
    count, started, done = len(images_read), False, 0
    workers = min(num_workers, -(-count // BATCH_SIZE))  # each one reads a batch at least
    loader = DataLoader(images_read, BATCH_SIZE, num_workers=workers, collate_fn=list, generator=generator)
    with evaluating(model), tqdm(total=count, desc="Features", unit="image", disable=not progress) as bar:
        for items in loader:
            images, planes = _prepare(items, transform, type(dataset).__name__)
            if copy is not None:
                images = torch.stack([copy(image, done + number) for number, image in enumerate(images)])
            done += len(items)
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
            raise InputError(
                f"The feature cache needs images of shape (3, H, W), but {dataset} gives {found}. "
                "Train without the cache (feature_cache=off)."
            )
        if transform is not None:
            image, mask = named(item.image_path, transform, image, mask)
        images.append(image.as_subclass(torch.Tensor))
        masks.append(mask)
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise InputError(f"Images have different sizes after the pre-processor: {sorted(sizes)}. Let it resize them.")
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
        raise InputError(
            f"Features reach {features.abs().max().item():.3g}, more than float16 can hold (65504). "
            "Keep them in float32 (feature_cache_dtype=float32)."
        )
    return kept.cpu().numpy()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
