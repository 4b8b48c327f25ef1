# SPDX-License-Identifier: Apache-2.0
"""Scores of one category, kept until they can be ranked, over all processes."""

import tempfile
from typing import IO, Any, Literal

import cv2
import numpy as np
import torch
from torchmetrics.utilities.distributed import gather_all_tensors

from anomalib_uniad.errors import InputError
from anomalib_uniad.metrics.functional import Floats, Ranking, rank

Level = Literal["image", "pixel"]

LEVELS: dict[Level, tuple[str, str]] = {"image": ("pred_score", "gt_label"), "pixel": ("anomaly_map", "gt_mask")}
"""Fields of a batch with scores and targets."""

_SPOOL_BYTES = 1 << 22  # what a category keeps in memory; beyond that it goes to a temporary file


class _Spool:
    """Arrays that are appended one after the other, and read at once."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._bytes = 0

    def append(self, values: np.ndarray) -> None:
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES, prefix="anomalib-uniad-")  # noqa: SIM115  # see clear
        self._file.write(np.ascontiguousarray(values).data)
        self._bytes += values.nbytes

    def read(self, dtype: np.dtype) -> np.ndarray:
        values = np.empty(self._bytes // dtype.itemsize, dtype)
        if self._file is not None:
            self._file.seek(0)
            # In parts: a file in memory hands out copies.
            view, start = values.view(np.uint8).data, 0
            while start < len(view):
                data = self._file.read(min(1 << 24, len(view) - start))
                view[start : start + len(data)] = data
                start += len(data)
        return values

    def clear(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._bytes = None, 0


class ScorePool:
    """Scores of positives and negatives of one category, collected batch by batch.

    They take 4 bytes each (and 4 more for the size of a positive's region), in temporary files beyond 4 MiB. So memory
    hardly grows with the number of categories, whatever the order of images.

    Attributes:
        positives (int): Number of positives so far.
        negatives (int): Number of negatives so far.
        has_nan (bool): Whether one of the scores was not a number; then there is no ranking.
    """

    def __init__(self) -> None:
        self.positives = 0
        self.negatives = 0
        self.has_nan = False
        self._dtype: np.dtype = np.dtype(np.float32)
        self._positives, self._sizes, self._negatives = _Spool(), _Spool(), _Spool()

    def add(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        """Add scores of images.

        Args:
            scores (torch.Tensor): ``(B,)`` or ``(B, 1)``, any floating type; or booleans.
            targets (torch.Tensor): ``(B,)``, 1 is defective.
        """
        target = targets.detach().bool().cpu().numpy().reshape(-1)
        self._add(self._plain(scores).reshape(-1), target, np.ones(int(target.sum()), np.int32))

    def add_maps(self, maps: torch.Tensor, masks: torch.Tensor) -> None:
        """Add pixels. Each region of a mask, connected also across corners, counts 1 in AUPRO.

        Args:
            maps (torch.Tensor): Anomaly maps ``(B, H, W)`` or ``(B, 1, H, W)``.
            masks (torch.Tensor): Masks of the same size, 1 is defective.

        Raises:
            ValueError: If maps and masks differ in size.
        """
        height, width = masks.shape[-2:]
        if maps.shape[-2:] != masks.shape[-2:]:
            msg = f"Anomaly maps of {tuple(maps.shape[-2:])} pixels cannot be compared with masks of {(height, width)}."
            raise InputError(msg)
        values = self._plain(maps).reshape(-1, height, width)
        for scores, mask in zip(values, masks.detach().bool().cpu().numpy().reshape(-1, height, width), strict=True):
            if not mask.any():
                self._add(scores.ravel())
                continue
            _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            regions = labels[mask]
            self._add(scores.ravel(), mask.ravel(), np.bincount(regions)[regions].astype(np.int32))

    def rank(self, device: torch.device | None = None) -> Ranking:
        """Rank what has been added, over all processes; with several, each of them must call this.

        Args:
            device (torch.device | None): Device over which processes exchange tensors. Defaults to ``None``, the CPU.

        Returns:
            Ranking: Counts.
        """
        positives, negatives = self._positives.read(self._dtype), self._negatives.read(self._dtype)
        sizes = self._sizes.read(np.dtype(np.int32))
        if world_size() > 1:
            # A process that has seen nothing of the category does not know whether scores are double.
            dtype = np.result_type(*gather_objects(self._dtype))
            positives, negatives = positives.astype(dtype, copy=False), negatives.astype(dtype, copy=False)
            positives, sizes, negatives = (gather_array(array, device) for array in (positives, sizes, negatives))
        return rank(positives, negatives, 1.0 / sizes)

    def clear(self) -> None:
        """Free the memory and the files; ``positives``, ``negatives`` and ``has_nan`` stay."""
        for spool in (self._positives, self._sizes, self._negatives):
            spool.clear()

    def __del__(self) -> None:
        self.clear()  # also when a test was interrupted

    def _plain(self, scores: torch.Tensor) -> Floats:
        """Scores as an array; half precision becomes single, which keeps their order."""
        if scores.dtype == torch.float64 and not self.positives + self.negatives:
            self._dtype = np.dtype(np.float64)
        values: Floats = scores.detach().to(torch.float64 if self._dtype == np.float64 else torch.float32).cpu().numpy()
        with np.errstate(invalid="ignore"):
            # A cheap test: the sum is NaN if a value is, or if there are infinite ones of both signs.
            suspect = np.isnan(values.sum(dtype=np.float64))
        self.has_nan = self.has_nan or bool(suspect and np.isnan(values).any())
        return values

    def _add(self, scores: Floats, target: np.ndarray | None = None, sizes: np.ndarray | None = None) -> None:
        negatives = scores
        if target is not None and sizes is not None:
            positives, negatives = scores[target], scores[~target]
            self.positives += len(positives)
            self._positives.append(positives)
            self._sizes.append(sizes)
        self.negatives += len(negatives)
        self._negatives.append(negatives)


def world_size() -> int:
    """Number of processes that evaluate together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def gather_array(array: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Concatenate arrays ``(n,)`` of all processes, over a device; ``n`` may differ, their type may not."""
    if world_size() == 1:
        return array
    parts = gather_all_tensors(torch.from_numpy(array).to(device or "cpu"))
    return np.concatenate([part.cpu().numpy() for part in parts])


def gather_objects(value: Any) -> list[Any]:
    """Collect small objects of all processes, in the order of the processes."""
    if world_size() == 1:
        return [value]
    everywhere: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(everywhere, value)
    return everywhere
