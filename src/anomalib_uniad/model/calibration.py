# SPDX-License-Identifier: Apache-2.0
"""Learns after each validation what products look like, and up to which score they are good."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from anomalib_uniad.category import categories_of, known_categories, paths_of, rows_of
from anomalib_uniad.metrics.limits import KnownScores, limits
from anomalib_uniad.metrics.post_processor import CalibratedPostProcessor
from anomalib_uniad.metrics.scores import gather_objects
from anomalib_uniad.training.cached_dataset import evaluating
from anomalib_uniad.training.feature_statistics import training_batches

from .products import Products

MOST_TRAINED = 100
"""Training images of a product that are looked at."""


class ProductCalibration(Callback):
    """Recognition and thresholds of products, from training images and those of the validation.

    Must come after the evaluator, from which the thresholds of pixels are where there are masks, and which keeps all
    thresholds.

    Args:
        false_alarm_rate (float): Share of good images that may be called anomalous where no defective ones are known.
    """

    def __init__(self, false_alarm_rate: float) -> None:
        self._rate = false_alarm_rate
        self._rows: list[dict[str, Any]] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the images of the last one."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores of a batch."""
        labels, masks = outputs.gt_label, outputs.gt_mask
        self._rows += _rows(
            outputs,
            trainer,
            labels.bool().tolist(),
            [False] * len(labels) if masks is None else masks.flatten(1).any(dim=1).tolist(),
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the model, if it is in training."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._calibrate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrate the model by its training images alone at the end, if nothing is validated."""
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        images = hasattr(getattr(trainer.train_dataloader, "dataset", None), "samples")  # else of features alone
        if last and images and not sum(trainer.num_val_batches):
            self._rows = []
            self._calibrate(trainer, pl_module)

    def _calibrate(self, trainer: Trainer, model: Any) -> None:
        products: Products = model.model.products
        trained, pooled = self._look_at_training(trainer, model)
        seen = _table(self._rows)
        names = [name for name in known_categories(trainer.datamodule) or sorted(pooled) if name in pooled]  # type: ignore[attr-defined]
        alike = [[names[row] for row in group] for group in products.learn([pooled[name] for name in names])]
        image = limits(_known(names, trained, seen, "score"), self._rate, alike)
        pixel = limits(_known(names, trained, seen[~seen["defective"]], "peak"), self._rate, alike)
        masked = set(seen.loc[seen["masked"], "category"])
        thresholds = model.category_thresholds
        learned = {
            name: {
                "image": image[name].threshold,
                "pixel": thresholds.get(name, {}).get("pixel", math.nan) if name in masked else pixel[name].threshold,
            }
            for name in names
        }
        products.calibrate(
            [(image[name].middle, image[name].threshold) for name in names], [learned[name]["pixel"] for name in names]
        )
        good = {name: image[name].good_scores for name in names if image[name].good_scores}
        model.calibrated(names, learned, {name: image[name].rule for name in names}, good)
        if isinstance(model.post_processor, CalibratedPostProcessor):
            model.post_processor.calibrated()
        self._rows = []

    def _look_at_training(self, trainer: Trainer, model: Any) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        """Scores of training images, and their pooled features by product."""
        rows: list[dict[str, Any]] = []
        features: list[torch.Tensor] = []
        with evaluating(model), torch.no_grad():
            for batch in training_batches(trainer, model, self._choose(trainer)):
                found = model.features_of(batch)
                outputs = model.raw_of(batch, found)
                count = len(outputs.pred_score)
                rows += _rows(outputs, trainer, [False] * count, [False] * count)
                features.append(Products.pool(model.model.normalise(found)).cpu())
        table = _table(rows)
        pooled = torch.cat(gather_objects(torch.cat(features)))
        return table, {name: pooled[rows] for name, rows in rows_of(table["category"]).items()}

    def _choose(self, trainer: Trainer) -> list[int]:
        """Rows of the training set that are looked at: as many of each product, evenly over its images."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        paths = trainer.train_dataloader.dataset.samples["image_path"]  # type: ignore[union-attr]
        of = rows_of(categories_of(list(paths), datamodule))
        return sorted(row for rows in of.values() for row in rows[:: -(-len(rows) // MOST_TRAINED)])


_COLUMNS = ["category", "score", "peak", "defective", "masked"]


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of all processes; names need not be text, which columns of Arrow have to be."""
    everywhere = [row for part in gather_objects(rows) for row in part]
    types = dict.fromkeys(_COLUMNS[1:3], float) | dict.fromkeys(_COLUMNS[3:], bool)
    return pd.DataFrame(everywhere, columns=_COLUMNS, dtype=object).astype(types)


def _rows(outputs: Any, trainer: Trainer, defective: Sequence[bool], masked: Sequence[bool]) -> list[dict[str, Any]]:
    """A row for each image of a batch, with raw scores."""
    names = categories_of(paths_of(outputs), trainer.datamodule)  # type: ignore[attr-defined]
    peaks = outputs.anomaly_map.flatten(1).amax(dim=1)
    columns = (names, outputs.pred_score.tolist(), peaks.tolist(), defective, masked)
    return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]


def _known(names: Sequence[str], trained: pd.DataFrame, seen: pd.DataFrame, by: str) -> dict[str, KnownScores]:
    """Scores of each product, by a column."""

    def scores(table: pd.DataFrame, name: str) -> Any:
        return table.loc[table["category"] == name, by].to_numpy()

    good, defective = seen[~seen["defective"]], seen[seen["defective"]]
    return {name: KnownScores(scores(trained, name), scores(good, name), scores(defective, name)) for name in names}
