# SPDX-License-Identifier: Apache-2.0
"""What a test and a prediction have in common."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.post_processing import PostProcessor
from lightning.pytorch import LightningModule, Trainer

from anomalib_uniad.metrics.predictions import Predictions
from anomalib_uniad.metrics.raw import RawPredictions
from anomalib_uniad.metrics.thresholds import Thresholds, apply, in_raw_scores, of_categories

if TYPE_CHECKING:
    from anomalib_uniad.metrics.evaluator import PerCategoryEvaluator

logger = logging.getLogger(__name__)


class Session:
    """A test or a prediction: raw scores, thresholds of categories, a row per image.

    Args:
        evaluator (PerCategoryEvaluator): The evaluator, which has the arguments and the thresholds.
        trainer (Trainer): The trainer.
        pl_module (LightningModule): The model.
    """

    def __init__(self, evaluator: "PerCategoryEvaluator", trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluator = evaluator
        self._trainer = trainer
        self._pl_module = pl_module
        self._datamodule = getattr(trainer, "datamodule", None)
        self._post_processor: Any = getattr(pl_module, "post_processor", None)
        self._raw = RawPredictions(self._post_processor)
        self._predictions = Predictions()
        self._globally = in_raw_scores(self._post_processor)
        self._used: Thresholds = {}
        if evaluator.thresholds == "category":
            self._used = evaluator.category_thresholds
            if not self._used:
                msg = (
                    "thresholds is 'category', but the model has none of categories. They are learned at validations "
                    "during training and kept in its checkpoint; a model without them has 'global' ones only."
                )
                raise ValueError(msg)
            if not isinstance(self._post_processor, PostProcessor):
                msg = "thresholds is 'category', which needs anomalib's PostProcessor, but the model has none."
                raise ValueError(msg)
        self._decided_by = of_categories(self._used, self._post_processor) if self._used else {}

    def start(self) -> None:
        """Look at what the model returns; not before it is clear that nothing is refused."""
        self._raw.start()

    def stop(self) -> None:
        """Leave the model as it was."""
        self._raw.stop()

    def _decide(self, batch: Any, categories: Sequence[str]) -> Any:
        """Decide by categories if that is wanted, and return what the model itself returned."""
        raw = self._raw.take(batch)
        if self._used:
            apply(batch, raw, categories, self._used, self._post_processor)
        return raw

    def _write_down(self, batch: Any, raw: Any, categories: Sequence[str]) -> None:
        scores = getattr(raw, "pred_score", None)
        scores = None if scores is None else scores.reshape(-1)[: len(batch)]
        self._predictions.add(batch, scores, categories, self._globally["image"], self._decided_by)

    @property
    def _folder(self) -> Path:
        return Path(self._trainer.default_root_dir)
