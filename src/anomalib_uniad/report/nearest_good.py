# SPDX-License-Identifier: Apache-2.0
"""The good training images that look most like others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule
from rich.console import Console
from rich.progress import track

from anomalib_uniad.errors import UserError
from anomalib_uniad.model import UniAD
from anomalib_uniad.model.products import Products
from anomalib_uniad.trained_run import CHECKPOINT, look, open_run, resolved, test_images, training_images


class NearestGood:
    """Finds the good training image that looks most like an image, by the mean features of both.

    Args:
        model (UniAD): The model, which computes the features.
        datamodule (AnomalibDataModule): Where the training images are from; about 1,000 of them are looked at.
    """

    def __init__(self, model: UniAD, datamodule: AnomalibDataModule) -> None:
        self._dataset, self._rows, self._categories = training_images(datamodule, 1000)
        pooled = []
        for row in track(self._rows, "Good images", console=Console(stderr=True)):
            features = look(model, self._dataset.collate_fn([self._dataset[row]]).image)[1]
            pooled.append(Products.pool(features))
        self._pooled = torch.cat(pooled)
        std = self._pooled.std(dim=0) if len(pooled) > 1 else torch.ones(1)
        self._scale = std.clamp(min=float(std.median()) / 100 or 1)

    def of(self, features: torch.Tensor, category: str) -> Any:
        """The one of a category as a batch of one image, by what is reconstructed ``(1, C, h, w)``; else ``None``."""
        if category not in self._categories:
            return None
        distances = ((self._pooled - Products.pool(features)) / self._scale).square().sum(dim=1)
        other = torch.tensor([name != category for name in self._categories])
        row = self._rows[int(distances.masked_fill(other, torch.inf).argmin())]
        return self._dataset.collate_fn([self._dataset[row]])


def find_nearest(run: Path, images: Sequence[tuple[str, str]]) -> dict[str, Path]:
    """As :func:`~anomalib_uniad.report.decisions.nearest_good`, of a run of UniAD; says so if nothing can be found."""
    try:
        model, datamodule = open_run(run / CHECKPOINT, None)
        places = test_images(datamodule)
        nearest = NearestGood(model, datamodule)
        found = {}
        for path, category in images:
            if (place := resolved(path)) in places:
                row, dataset = places[place]
                like = nearest.of(look(model, dataset.collate_fn([dataset[row]]).image)[1], category)
                if like is not None:
                    found[path] = Path(like.image_path[0])
    except (UserError, OSError) as error:
        console = Console(stderr=True, highlight=False)
        console.print(f"No good images beside what went wrong: {error}", markup=False, soft_wrap=True)
        return {}
    return found
