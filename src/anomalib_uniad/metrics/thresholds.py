# SPDX-License-Identifier: Apache-2.0
"""Thresholds of decisions: anomalib's global ones, and one per category.

Thresholds of categories are learned as :func:`anomalib_uniad.metrics.functional.f1_threshold` of the validation images.
All are in raw scores, as the model returns them.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from anomalib_uniad.metrics.post_processor import LearnedPostProcessor
from anomalib_uniad.metrics.scores import Level, gather_objects, world_size

ThresholdScope = Literal["global", "category"]
Thresholds = dict[str, dict[Level, float]]
"""Category -> level -> threshold."""

_NAN = float("nan")


def global_thresholds(post_processor: Any) -> dict[Level, float]:
    """Return the thresholds by which anomalib's post-processor decides, NaN where there is none, or it is another."""
    found: dict[Level, float] = {"image": _NAN, "pixel": _NAN}
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return found
    undecided = isinstance(post_processor, LearnedPostProcessor) and not post_processor.learned["pred_label"]
    for level in () if undecided else _levels(post_processor):
        low = float(getattr(post_processor, f"{level}_min"))
        if post_processor.enable_normalization and low == low:
            found[level] = _with_sensitivity(
                float(getattr(post_processor, f"{level}_threshold")), level, post_processor
            )
        else:  # anomalib then compares the scores as they are
            found[level] = float(getattr(post_processor, f"normalized_{level}_threshold"))
    return found


def join_learning(post_processor: Any) -> None:
    """Have each process take part in learning thresholds, also one that has seen no image with a mask.

    anomalib's post-processor would not ask such a process for its scores, while the others wait for them.

    Args:
        post_processor (Any): Post-processor of the model, at the end of a validation before it learns.
    """
    if world_size() == 1 or not isinstance(post_processor, PostProcessor):
        return
    for name in ("_image_threshold_metric", "_pixel_threshold_metric"):
        metric: Any = getattr(post_processor, name)
        own = (metric.preds[0].dtype, metric.target[0].dtype) if metric.update_called else None
        types = next(filter(None, gather_objects(own)), None)
        if types is not None and not metric.update_called:
            empty = [torch.zeros(0, dtype=dtype, device=metric.device) for dtype in types]
            metric.update(SimpleNamespace(**dict(zip(metric.fields, empty, strict=True))))


def with_sensitivity(thresholds: Thresholds, post_processor: PostProcessor) -> Thresholds:
    """Move learned thresholds by anomalib's sensitivity: to those by which :func:`decide_by_category` decides."""
    return {
        category: {level: _with_sensitivity(value, level, post_processor) for level, value in levels.items()}
        for category, levels in thresholds.items()
    }


def decide_by_category(
    batch: Any, raw: InferenceBatch, categories: Sequence[str], thresholds: Thresholds, post_processor: PostProcessor
) -> None:
    """Replace anomalib's decisions and normalised scores, so that the category's threshold is at 0.5.

    Images of categories without thresholds stay as they are.

    Args:
        batch (Any): Batch of B images after post-processing; changed in place.
        raw (InferenceBatch): ``pred_score`` and ``anomaly_map`` as the model returned them.
        categories (Sequence[str]): Category of each image.
        thresholds (Thresholds): Thresholds as learned, without sensitivity.
        post_processor (PostProcessor): Post-processor of the model.
    """
    fields = {"image": ("pred_score", "pred_label"), "pixel": ("anomaly_map", "pred_mask")}
    for level in _levels(post_processor):
        score, decision = fields[level]
        scores, normalised, decided = getattr(raw, score), getattr(batch, score), getattr(batch, decision)
        if scores is None or normalised is None or scores.numel() != normalised.numel():
            continue
        # In half precision, a threshold between two scores would be rounded to one of them.
        scores = scores.reshape(normalised.shape)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        normalised = normalised.clone()
        decided = None if decided is None else decided.clone()
        for row, category in enumerate(categories):
            threshold = thresholds.get(category, {}).get(level, _NAN)
            if threshold != threshold:
                continue
            if post_processor.enable_normalization:
                low, high = getattr(post_processor, f"{level}_min"), getattr(post_processor, f"{level}_max")
                at = torch.tensor(threshold, dtype=scores.dtype, device=scores.device)
                normalised[row] = post_processor._normalize(scores[row], low, high, at).to(normalised.dtype)  # type: ignore[union-attr]
            if decided is not None and decided.dtype == torch.bool:
                # By raw scores: normalised ones close to the threshold would be rounded to it.
                above = scores[row] > _with_sensitivity(threshold, level, post_processor)
                decided[row] = above.reshape(decided[row].shape)
        setattr(batch, score, normalised)
        setattr(batch, decision, decided)


def _levels(post_processor: PostProcessor) -> tuple[Level, ...]:
    """Levels of decisions by a threshold; derived classes (MEBin) decide about pixels in other ways."""
    return ("image", "pixel") if type(post_processor) in (PostProcessor, LearnedPostProcessor) else ("image",)


def _with_sensitivity(threshold: float, level: Level, post_processor: PostProcessor) -> float:
    """Move a threshold: anomalib normalises it to 0.5, and decides at 1 - sensitivity."""
    low, high = (float(getattr(post_processor, f"{level}_{end}")) for end in ("min", "max"))
    decision = float(getattr(post_processor, f"normalized_{level}_threshold"))
    return threshold + (decision - 0.5) * (high - low) if high > low else threshold
