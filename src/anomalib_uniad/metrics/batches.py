# SPDX-License-Identifier: Apache-2.0
"""Dataloaders and batches: expected images, repeated ones, unreadable ones; rows of a batch."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from anomalib.data import PredictDataset
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DistributedSampler, SequentialSampler

from anomalib_uniad.category import categories_of, known_categories
from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import listed, look_at

logger = logging.getLogger(__name__)


class OwnImages:
    """Counts the images of batches, without those that a process gets only to have as many as the others.

    Lightning spreads images with a ``DistributedSampler``, which repeats some at the end where their number is not a
    multiple of the number of processes. Counted twice, they would change metrics.

    Args:
        dataloaders (Sequence[Any]): Dataloaders of the trainer.
    """

    def __init__(self, dataloaders: Sequence[Any]) -> None:
        self._left: list[int | None] = []  # None: the dataloader repeats no images
        for loader in dataloaders:
            sampler = _sampler_of(loader)
            repeats = isinstance(sampler, DistributedSampler) and not sampler.drop_last
            own = range(sampler.rank, len(sampler.dataset), sampler.num_replicas) if repeats else ()
            self._left.append(len(own) if repeats else None)

    def count(self, batch_size: int, dataloader_idx: int = 0) -> int:
        """Return how many images of the next batch, its first ones, are not repetitions."""
        left = self._left[dataloader_idx] if dataloader_idx < len(self._left) else None
        if left is None:
            return batch_size
        self._left[dataloader_idx] = max(left - batch_size, 0)
        return min(left, batch_size)


def flat(dataloaders: Any) -> list[Any]:
    """Return dataloaders of the trainer as a list; they can be one, a list, a dictionary or ``None``."""
    return CombinedLoader([dataloaders]).flattened


def _sampler_of(loader: Any) -> Any:
    """Sampler of a dataloader; of one with a batch sampler of its own, the sampler of that."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))


def _samples(loaders: Sequence[Any]) -> list[pd.DataFrame]:
    """Tables of anomalib's datasets."""
    tables = [getattr(getattr(loader, "dataset", None), "samples", None) for loader in loaders]
    return [table for table in tables if isinstance(table, pd.DataFrame)]


def mask_paths(loaders: Sequence[Any]) -> dict[str, str]:
    """Path of an image -> its mask, as strings."""
    found: dict[str, str] = {}
    for samples in _samples(loaders):
        if "mask_path" in samples:
            pairs = zip(samples.image_path, samples.mask_path, strict=True)
            found.update({str(image): str(mask) for image, mask in pairs if isinstance(mask, str | Path) and str(mask)})
    return found


def expected_images(loaders: Sequence[Any], datamodule: Any) -> Mapping[str, int] | None:
    """Number of images of each category; ``None`` unless there are several and one loader has each image once."""
    samples = _samples(loaders)
    sequential = len(loaders) == 1 and isinstance(_sampler_of(loaders[0]), SequentialSampler)
    if not sequential or not samples or len(known_categories(datamodule)) < 2:
        return None
    return Counter(categories_of(list(samples[0].image_path), datamodule))


def count_images(datamodule: Any, categories: Sequence[str]) -> dict[str, dict[str, int]]:
    """Number of images of each category in the sets of a datamodule.

    Args:
        datamodule (Any): A datamodule of anomalib that is set up, or ``None``.
        categories (Sequence[str]): The categories; if there is one, all images are of it.

    Returns:
        dict[str, dict[str, int]]: Category -> ``training_images``, ``validation_images`` and ``test_images``, of the
            sets that there are.
    """
    counts: dict[str, dict[str, int]] = {category: {} for category in categories}
    for name, prefix in (("training", "train"), ("validation", "val"), ("test", "test")):
        samples = getattr(getattr(datamodule, f"{prefix}_data", None), "samples", None)
        if samples is not None:
            paths = list(samples.image_path)
            found = Counter(categories_of(paths, datamodule))
            for category in categories:
                counts[category][f"{name}_images"] = len(paths) if len(categories) == 1 else found[category]
    return counts


def leave_out_unreadable(dataloaders: Any) -> str:
    """Leave images that cannot be read out of folders that are predicted; datasets of datamodules are not checked.

    Returns:
        str: What to say at the end; empty if all can be read.

    Raises:
        ValueError: If images have more than 8 bits, no image is left, or they are read by other processes, which have
            their list already.
    """
    new = [loader for loader in flat(dataloaders) if isinstance(getattr(loader, "dataset", None), PredictDataset)]
    images = [str(path) for loader in new for path in loader.dataset.image_filenames]
    refuse_deep(new)
    bad = {path: seen.reason for path, seen in look_at(images).items() if seen.reason}
    if not bad:
        return ""
    message = f"{len(bad)} of {len(images)} images cannot be read: {listed(bad)}."
    if len(bad) == len(images) or any(loader.num_workers for loader in new):
        raise InputError(f"{message} Nothing was predicted.")
    logger.warning("%s They are left out.", message)
    for loader in new:
        loader.dataset.image_filenames = [path for path in loader.dataset.image_filenames if str(path) not in bad]
    return f"{message} The others were predicted."


def refuse_deep(loaders: Sequence[Any]) -> None:
    """Refuse folders to predict in which images have more than 8 bits; only the heads of files are read.

    Args:
        loaders (Sequence[Any]): Dataloaders; those of other datasets than anomalib's for folders are left out.

    Raises:
        ValueError: If there are such images; the message names the first one.
    """
    new = [loader for loader in loaders if isinstance(getattr(loader, "dataset", None), PredictDataset)]
    images = [str(path) for loader in new for path in loader.dataset.image_filenames]
    for path, seen in look_at(images, whole=False).items():
        if seen.depth:
            raise InputError(
                f"{path} has more than 8 bits (Pillow's mode {seen.mode}), of which anomalib's reader cuts off all "
                "above 255: train with value_range of MultiCategory or MetaFile, export the model, and predict with "
                "`anomalib-uniad predict`."
            )


def without_score(batch: Any, raw_scores: torch.Tensor | None) -> torch.Tensor | None:
    """Say which images of a batch have a score that is not finite.

    Args:
        batch (Any): Batch of B images.
        raw_scores (torch.Tensor | None): Scores ``(B,)`` as the model returned them, which the post-processor has cut;
            ``None`` if unknown.

    Returns:
        torch.Tensor | None: ``(B,)``, bool; ``None`` if there are no scores.
    """
    scores = batch.pred_score if raw_scores is None else raw_scores
    return None if scores is None or scores.numel() != len(batch) else ~scores.detach().reshape(-1).isfinite()


def select(batch: Any, rows: Iterable[int]) -> Any:
    """Return some images of a batch as a batch of the same class; it shares memory if the rows are consecutive."""
    count, rows = len(batch), list(rows)
    consecutive = bool(rows) and rows == list(range(rows[0], rows[-1] + 1))
    values: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            values[item.name] = value[rows[0] : rows[-1] + 1] if consecutive else value[rows]
        elif isinstance(value, list) and len(value) == count:
            values[item.name] = [value[row] for row in rows]
    return batch.update(in_place=False, **values)
