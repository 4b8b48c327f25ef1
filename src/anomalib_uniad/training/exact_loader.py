# SPDX-License-Identifier: Apache-2.0
"""A training dataloader whose batches depend on nothing but a seed, the epoch and the position in the epoch."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler

# What keeps the random numbers of different purposes apart, see mix_seed.
ORDER, BATCH, WORKERS, STEP = range(4)


def mix_seed(*numbers: int) -> int:
    """Make one seed of 63 bits out of several numbers; close numbers give seeds that have nothing in common.

    Args:
        *numbers (int): Numbers that are not negative.

    Returns:
        int: The seed.

    Example:
        >>> mix_seed(1, 2) == mix_seed(1, 2), mix_seed(1, 2) == mix_seed(2, 1)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_everything_quietly(seed: int) -> None:
    """Seed the generators that training code draws from: torch's (all devices), numpy's and Python's own.

    Lightning's ``seed_everything`` does the same, but sets environment variables and writes to the log each time.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the legacy generator that augmentations use
    random.seed(seed)


class ExactSampler(DistributedSampler):
    """Order of the images as a function of seed and epoch; gives pairs of the seed of a batch and an index.

    A ``DistributedSampler`` also for a single process: Lightning tells it the epoch, and puts no other in its place.

    Args:
        dataset (Dataset): The dataset.
        batch_size (int): Images of one process in a batch.
        seed (int): Everything random follows from it.
        num_replicas (int): Number of processes. Defaults to ``1``.
        rank (int): Number of this process. Defaults to ``0``.

    Example:
        >>> sampler = ExactSampler(range(4), batch_size=2, seed=0)
        >>> order = list(sampler)
        >>> sampler.start_at(epoch=0, batch=1)
        >>> list(sampler) == order[2:], list(sampler) == order
        (True, True)
    """

    def __init__(self, dataset: Any, batch_size: int, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True)
        self.batch_size = batch_size
        self.base_seed = seed
        self._start = (0, 0)

    def start_at(self, epoch: int, batch: int) -> None:
        """Leave out the first batches of one epoch, once."""
        self._start = (epoch, batch)

    def __iter__(self) -> Iterator[Any]:
        """Yield ``(seed of the batch, index)``."""
        self.seed = mix_seed(self.base_seed, ORDER)  # the epoch is added to it
        first = 0
        if self._start[0] == self.epoch:
            first, self._start = self._start[1], (0, 0)
        for position, index in enumerate(super().__iter__()):
            batch, offset = divmod(position, self.batch_size)
            if batch < first:
                continue
            if offset == 0:
                seed = mix_seed(self.base_seed, BATCH, self.epoch, batch, self.rank)
            yield seed, index


class SeededDataset(Dataset):
    """Reads the batches of another dataset, each with the seed that comes with its indices.

    What is random in the dataset and in the collate function is then the same wherever a batch is read: in the main
    process or in any worker, after any other batch.

    Args:
        dataset (Dataset): The other dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Any:
        """Read a batch; ``items`` come from :class:`ExactSampler`."""
        seed_everything_quietly(items[0][0])
        indices = [index for _, index in items]
        read = getattr(self.dataset, "__getitems__", None)  # as torch's dataloader does it
        return read(indices) if read else [self.dataset[index] for index in indices]

    def __getitem__(self, index: int) -> Any:
        """Read an item, for code that looks at the loader's dataset."""
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ExactLoader(DataLoader):
    """A dataloader that can go on in the middle of an epoch, by Lightning's protocol for that.

    Args:
        *args (Any): Arguments of torch's dataloader.
        **kwargs (Any): Arguments of torch's dataloader.
    """

    sampler: Any  # an ExactSampler
    position: Callable[[], dict[str, int]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @classmethod
    def like(
        cls,
        loader: Any,
        seed: int,
        num_replicas: int,
        rank: int,
        position: Callable[[], dict[str, int]],
    ) -> "ExactLoader":
        """Make one with the settings of another loader.

        Args:
            loader (DataLoader): A loader that :func:`can_be_exact` accepts.
            seed (int): Everything random follows from it.
            num_replicas (int): Number of processes.
            rank (int): Number of this process.
            position (Callable[[], dict[str, int]]): Tells ``epoch`` and ``batch``, where training is.

        Returns:
            ExactLoader: The new loader.
        """
        exact = cls(
            SeededDataset(loader.dataset),
            batch_size=loader.batch_size,
            sampler=ExactSampler(loader.dataset, loader.batch_size, seed, num_replicas, rank),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            drop_last=loader.drop_last,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator(),  # or it would draw the seed of its workers from the global generator
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
            pin_memory_device=loader.pin_memory_device,
            in_order=loader.in_order,
        )
        exact.position = position
        return exact

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches.

        A generator on purpose: when training is resumed, Lightning asks for the iterator before it tells the sampler
        the epoch, and workers begin to read as soon as torch's iterator is there.
        """
        sampler = self.sampler
        self.generator.manual_seed(mix_seed(sampler.base_seed, WORKERS, sampler.epoch, sampler.rank))
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return the position in the epoch: batches that were trained on, not those that workers have read ahead."""
        return self.position()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position."""
        self.sampler.start_at(state["epoch"], state["batch"])


def can_be_exact(loader: Any) -> bool:
    """Tell whether a loader shuffles in the plain way, so that :class:`ExactLoader` can take its place.

    Args:
        loader (Any): What a datamodule returns as its training dataloader.

    Returns:
        bool: ``False`` for subclasses, own samplers and batch samplers, samplers that have a generator of their own.
    """
    return (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) is RandomSampler
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
        and loader.sampler.generator is None
    )
