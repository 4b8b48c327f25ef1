# SPDX-License-Identifier: Apache-2.0
"""Evaluation in several processes: exchange of arrays, images that are repeated to give all processes equally many."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors


def world_size() -> int:
    """Number of processes that evaluate together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def gather_array(array: np.ndarray, device: torch.device | None = None) -> np.ndarray:
    """Concatenate arrays of all processes, in the order of the processes.

    Args:
        array (np.ndarray): Array ``(n,)`` of this process; ``n`` may differ between processes, the type may not.
        device (torch.device | None): Device over which processes exchange tensors. Defaults to ``None``, the CPU.

    Returns:
        np.ndarray: The concatenated array; the same one if there is one process.
    """
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
            sampler: Any = getattr(loader, "sampler", None)
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


def select(batch: Any, rows: Iterable[int]) -> Any:
    """Return some images of a batch as a batch of the same class.

    Args:
        batch (Any): Batch of B images.
        rows (Iterable[int]): Their positions, from 0 to B - 1.

    Returns:
        Any: The new batch; it shares memory with the old one if the rows are consecutive.
    """
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
