# SPDX-License-Identifier: Apache-2.0
"""What is measured of the features of the training images, before a training."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from .cached_dataset import CachedDataset

_BATCH_SIZE = 16
SAME_FOR_EACH = 0.2
"""Part of the images drawn that products share alike."""


def training_batches(trainer: Trainer, pl_module: LightningModule, rows: Sequence[int] | None = None) -> Iterator[Any]:
    """Read each training image once, in order, as the training will: on its device, after the pre-processor.

    Of a feature cache with copies, the images as they are.

    With several processes, each gets its share, none an image twice. To be called from ``on_fit_start`` on, when a
    feature cache is filled.

    Args:
        trainer (Trainer): The trainer of the training.
        pl_module (LightningModule): Its model.
        rows (Sequence[int] | None): Rows of the training set that are read. Defaults to ``None``, all.

    Yields:
        Batch: A batch of images, or of features from a cache.
    """
    trainer.fit_loop.setup_data()
    loader: Any = trainer.train_dataloader
    if loader.batch_sampler is not None:  # else whoever made the loader makes batches himself
        images = loader.dataset
        images = images.without_copies() if isinstance(images, CachedDataset) else images
        loader = DataLoader(
            Subset(images, (range(len(images)) if rows is None else rows)[trainer.global_rank :: trainer.world_size]),
            _BATCH_SIZE,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            generator=torch.Generator(),  # of its own: the training must not see other random numbers
        )
    pre_processor: Any = getattr(pl_module, "pre_processor", None)
    shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # no look at everything
        loader = list(islice(loader, int(trainer.num_training_batches)))
    for batch in tqdm(loader, desc="Statistics of features", unit="batch", disable=not shown):
        moved = trainer.strategy.batch_to_device(batch)
        if any(callback is pre_processor for callback in trainer.callbacks):  # type: ignore[attr-defined]
            pre_processor.on_train_batch_start(trainer, pl_module, moved, 0)
        yield moved


class ChannelStatistics:
    """Mean and standard deviation of each channel, summed up in float64.

    Args:
        channels (int): Channels ``C``.

    Examples:
        >>> statistics = ChannelStatistics(1)
        >>> statistics.add(torch.tensor([[[[1.0, 3.0]]]]))
        >>> [value.item() for value in statistics.result()]
        [2.0, 1.0, 1.0]
    """

    def __init__(self, channels: int) -> None:
        self._sums = torch.zeros(2 * channels + 2, dtype=torch.float64)  # of x and of x squared, weights, images

    def add(self, features: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add the features of some images.

        Args:
            features (torch.Tensor): ``(B, C, h, w)``.
            weights (torch.Tensor | None): ``(B or 1, 1, h, w)``, how much each token counts; ``None`` is 1.
                Defaults to ``None``.
        """
        # MPS devices have no float64.
        values = (features.cpu() if features.device.type == "mps" else features).double()
        count = values.new_ones(()) if weights is None else weights.to(values)
        count = count.expand(len(values), 1, *values.shape[2:])
        weighted = values * count
        parts = (weighted.sum(dim=(0, 2, 3)), (weighted * values).sum(dim=(0, 2, 3)), count.sum()[None])
        self._sums += torch.cat([*parts, parts[-1].new_tensor([len(values)])]).to(self._sums.device)

    def result(self, strategy: Strategy | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean ``(C,)``, standard deviation ``(C,)`` and number of images ``()``.

        Args:
            strategy (Strategy | None): The trainer's: those of all its processes together. Defaults to ``None``.
        """
        sums = self._sums
        if strategy is not None:
            sums = strategy.reduce(sums.to(strategy.root_device), reduce_op="sum").cpu()
        (first, second), (weight, images) = sums[:-2].chunk(2), sums[-2:]
        mean = first / weight
        return mean, (second / weight - mean.square()).clamp(min=0).sqrt(), images


def shares_of_products(dataset: CachedDataset, products: Sequence[Sequence[int]]) -> torch.Tensor:
    """How often images of products should be drawn: the more those of one differ, the more often.

    The variance of a product is that of its images about their mean, at each place and in each channel, on the scale
    of all features; padding is places that never differ. Four fifths of the draws are in proportion to its square:
    errors of reconstructions fall about with the root of the number of images seen, and should become alike for all
    products. One fifth is the same for each, so that none is forgotten, and all that a product with one image gets. How
    many images a product has makes no other difference.

    Args:
        dataset (CachedDataset): The training images; it is filled.
        products (Sequence[Sequence[int]]): Rows of each of P products, each row once.

    Returns:
        torch.Tensor: Part of the draws that each product gets ``(P,)``; the parts make 1.
    """
    channels, height, width = next(dataset.features_of([0])).shape[1:]
    overall, within = ChannelStatistics(channels), []
    for rows in products:
        places = ChannelStatistics(channels * height * width)
        for features in dataset.features_of(rows):
            overall.add(features)
            places.add(features.flatten(1)[:, :, None, None])
        variances = places.result()[1].square() * len(rows) / max(1, len(rows) - 1)
        within.append(variances.reshape(channels, -1).mean(dim=1))  # (C,)
    scale = overall.result()[1].square()  # (C,)
    squares = (torch.stack(within) / scale)[:, scale > 0].mean(dim=1).nan_to_num().square()
    wanted = squares / squares.sum() if squares.sum() > 0 else torch.full_like(squares, 1 / len(squares))
    return (1 - SAME_FOR_EACH) * wanted + SAME_FOR_EACH / len(wanted)
