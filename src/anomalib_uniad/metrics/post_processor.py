# SPDX-License-Identifier: Apache-2.0
"""anomalib's post-processor, without decisions where nothing was learned by which to decide."""

import math
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from anomalib.post_processing import PostProcessor

# Where the threshold is, and the ends of the scale: after normalisation, and without one.
_LIMITS = ((0.5, 0.0), (0.0, -math.inf), (1.0, math.inf))


class LearnedPostProcessor(PostProcessor):
    """anomalib's post-processor that decides nothing before it has learned thresholds from a validation.

    anomalib's own compares raw scores with 0.5 then: which images it calls anomalous depends on the unit of the scores.
    Here ``pred_label`` and ``pred_mask`` are ``None`` in tests and predictions, unless the model decides itself, and
    exported models do not have these outputs. Scores and maps are those of the model. All else is as in anomalib.

    Args:
        **kwargs (Any): Arguments of anomalib's ``PostProcessor``.

    Examples:
        >>> output = InferenceBatch(pred_score=torch.tensor([3.0]), anomaly_map=torch.ones(1, 2, 2))
        >>> LearnedPostProcessor()(output)[:2]
        (tensor([3.]), None)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._learned = {"pred_label": False, "pred_mask": False}

    @property
    def learned(self) -> dict[str, bool]:
        """Whether there is something by which to decide: ``pred_label`` and ``pred_mask`` -> yes or no."""
        if (
            not torch.compiler.is_compiling()
        ):  # an export is given what was found when the model was last used or loaded
            for name, level in (("pred_label", "image"), ("pred_mask", "pixel")):
                known = [getattr(self, f"{level}_threshold")]
                if self.enable_normalization:  # scores in the middle of their range have 0.5 then
                    known.append(getattr(self, f"{level}_min"))
                self._learned[name] = not all(bool(value.isnan()) for value in known)
        return self._learned

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        _ = self.learned

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Post-process the output of a model.

        Args:
            predictions (InferenceBatch): Scores ``(B,)`` and maps ``(B, 1, H, W)``.

        Returns:
            InferenceBatch: The same, normalised, and decisions; as they are and no decisions if nothing was learned.
        """
        if not any(self.learned.values()):
            return InferenceBatch(pred_score=predictions.pred_score, anomaly_map=predictions.anomaly_map)
        made = super().forward(predictions)
        return made._replace(**{name: None for name, learned in self.learned.items() if not learned})

    @staticmethod
    def _normalize(
        preds: torch.Tensor | None, norm_min: torch.Tensor, norm_max: torch.Tensor, threshold: torch.Tensor
    ) -> torch.Tensor | None:
        """As anomalib, but exported without a choice for each pixel between what depends on constants alone.

        Runtimes cannot remove these choices from files for any number of images, where each costs as much as the whole
        normalisation.
        """
        if preds is None or not torch.compiler.is_exporting():
            return PostProcessor._normalize(preds, norm_min, norm_max, threshold)
        threshold = torch.where(threshold.isnan(), (norm_max + norm_min) / 2, threshold)
        span = norm_max - norm_min  # NaN if nothing was learned: all is left as it is
        known = ~span.isnan()
        # Of equal ends, the sign of the distance to the threshold is left: the tiniest distance is cut to 0 or 1.
        divisor = torch.where(span == 0, torch.finfo(span.dtype).tiny, span)
        shift, divisor = torch.where(known, threshold, 0.0), torch.where(known, divisor, 1.0)
        middle, lowest, highest = (torch.where(known, end, other) for end, other in _LIMITS)
        return torch.minimum(torch.maximum((preds - shift) / divisor + middle, lowest), highest)

    def threshold_batch(self, batch: Batch) -> None:
        """Decide about the images of a batch.

        Args:
            batch (Batch): B images with scores and maps; changed in place.
        """
        own = {name: getattr(batch, name) for name, learned in self.learned.items() if not learned}
        super().threshold_batch(batch)
        for name, decision in own.items():
            setattr(batch, name, decision)


class CalibratedPostProcessor(LearnedPostProcessor):
    """The post-processor of a model that puts the thresholds of all products at 0 of a scale from -1 to 1.

    It learns nothing from a validation. All else is as in :class:`LearnedPostProcessor`, sensitivities included.

    Args:
        **kwargs (Any): Arguments of anomalib's ``PostProcessor``.
    """

    def calibrated(self) -> None:
        """Decide from now on."""
        for level in ("image", "pixel"):
            for name, value in ((f"_{level}_threshold", 0.0), (f"{level}_min", -1.0), (f"{level}_max", 1.0)):
                getattr(self, name).fill_(value)
        _ = self.learned

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Learn nothing."""

    def on_validation_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        """Learn nothing."""
