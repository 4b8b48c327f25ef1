# SPDX-License-Identifier: Apache-2.0
"""What several processes that evaluate together exchange."""

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
    """Join arrays of all processes along their only dimension, in the order of the processes.

    Args:
        array (np.ndarray): Array ``(n,)`` of this process; ``n`` may differ between processes, the type may not.
        device (torch.device | None): Device over which processes exchange tensors. Defaults to ``None``, the CPU.

    Returns:
        np.ndarray: The joined array; the same one if there is one process.
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


class ImagesOfThisProcess:
    """Leaves out images that a process gets only so that all processes have equally many.

    Lightning spreads images with a ``DistributedSampler``, which repeats some where their number is not a multiple of
    the number of processes. Counted twice, they would change metrics.

    Args:
        dataloaders (Any): Dataloader or list of dataloaders of the trainer.
    """

    def __init__(self, dataloaders: Any) -> None:
        loaders = dataloaders if isinstance(dataloaders, list | tuple) else [dataloaders]
        self._left = [_real_images(getattr(loader, "sampler", None)) for loader in loaders]

    def cut(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Return the images of a batch that are to be counted here; ``None`` if there are none."""
        left = self._left[dataloader_idx] if dataloader_idx < len(self._left) else None
        if left is None:
            return batch
        self._left[dataloader_idx] = max(left - len(batch), 0)
        if left >= len(batch):
            return batch
        return part(batch, range(left)) if left else None


def part(batch: Any, rows: Any) -> Any:
    """Return some images of a batch as a batch of the same class."""
    count, rows = len(batch), list(rows)
    together = bool(rows) and rows == list(range(rows[0], rows[-1] + 1))  # then nothing has to be copied
    values: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            values[item.name] = value[rows[0] : rows[-1] + 1] if together else value[rows]
        elif isinstance(value, list) and len(value) == count:
            values[item.name] = [value[row] for row in rows]
    return batch.update(in_place=False, **values)


def _real_images(sampler: Any) -> int | None:
    """How many images of this process are not repetitions, which come last; ``None`` if there are no repetitions."""
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
