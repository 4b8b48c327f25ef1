# SPDX-License-Identifier: Apache-2.0
"""Thresholds of each category, learned at validation."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from anomalib.post_processing import PostProcessor

from anomalib_uniad.metrics.exact import Level
from anomalib_uniad.metrics.functional import Ranking, f1_threshold

ThresholdScope = Literal["global", "category"]
Thresholds = dict[str, dict[Level, float]]
"""Category -> level -> threshold, in scores as the model itself returns them."""


def learn(rankings: Mapping[Level, Ranking]) -> dict[Level, float]:
    """Return the thresholds with the highest F1 score.

    Args:
        rankings (Mapping[Level, Ranking]): Rankings of the validation images of a category.

    Returns:
        dict[Level, float]: A threshold for each level; see :func:`anomalib_uniad.metrics.functional.f1_threshold`.
    """
    return {level: f1_threshold(ranking) for level, ranking in rankings.items()}


def in_raw_scores(post_processor: Any) -> dict[Level, float]:
    """Return the global thresholds by which anomalib's post-processor decides, in the model's own scores.

    Args:
        post_processor (Any): anomalib's post-processor; others have no thresholds that could be told.

    Returns:
        dict[Level, float]: A threshold for each level; NaN where there is none.
    """
    found: dict[Level, float] = {"image": float("nan"), "pixel": float("nan")}
    if not isinstance(post_processor, PostProcessor) or not post_processor.enable_thresholding:
        return found
    # Classes derived from it (MEBin) decide about pixels in other ways.
    for level in _levels(post_processor):
        decision = float(getattr(post_processor, f"normalized_{level}_threshold"))
        threshold = float(getattr(post_processor, f"{level}_threshold"))
        low = float(getattr(post_processor, f"{level}_min"))
        if not post_processor.enable_normalization or low != low:  # then anomalib compares the scores as they are
            found[level] = decision
        else:
            found[level] = _moved(threshold, level, post_processor)
    return found


def of_categories(thresholds: Thresholds, post_processor: PostProcessor) -> Thresholds:
    """Return the thresholds of categories by which is decided: as learned, moved by anomalib's sensitivity.

    Args:
        thresholds (Thresholds): Thresholds as learned.
        post_processor (PostProcessor): anomalib's post-processor of the model.

    Returns:
        Thresholds: Thresholds in raw scores.
    """
    return {
        category: {level: _moved(threshold, level, post_processor) for level, threshold in levels.items()}
        for category, levels in thresholds.items()
    }


def _levels(post_processor: PostProcessor) -> tuple[Level, ...]:
    return ("image", "pixel") if type(post_processor) is PostProcessor else ("image",)


def _moved(threshold: float, level: Level, post_processor: PostProcessor) -> float:
    """A threshold in raw scores, moved by the sensitivity: anomalib puts it at 0.5 and decides at 1 - sensitivity."""
    low, high = (float(getattr(post_processor, f"{level}_{end}")) for end in ("min", "max"))
    decision = float(getattr(post_processor, f"normalized_{level}_threshold"))
    return threshold + (decision - 0.5) * (high - low) if high > low else threshold


def apply(
    batch: Any, raw: Any, categories: Sequence[str], thresholds: Thresholds, post_processor: PostProcessor
) -> None:
    """Decide again, by the thresholds of categories, and let normalised scores show these thresholds at 0.5.

    Images of categories without thresholds stay as they are.

    Args:
        batch (Any): Batch after post-processing; changed in place.
        raw (Any): ``pred_score`` and ``anomaly_map`` as the model returned them.
        categories (Sequence[str]): Category of each image.
        thresholds (Thresholds): Thresholds of each category.
        post_processor (PostProcessor): anomalib's post-processor of the model.
    """
    fields: tuple[tuple[Level, str, str], ...] = (
        ("image", "pred_score", "pred_label"),
        ("pixel", "anomaly_map", "pred_mask"),
    )
    for level, score, decision in fields:
        scores, processed, decided = getattr(raw, score, None), getattr(batch, score), getattr(batch, decision)
        if scores is None or processed is None or scores.numel() != processed.numel():
            continue
        if level not in _levels(post_processor):
            continue
        # In half precision, a threshold between two scores would be rounded to one of them.
        scores = scores.reshape(processed.shape)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        processed = processed.clone()
        decided = None if decided is None else decided.clone()
        for row, category in enumerate(categories):
            threshold = thresholds.get(category, {}).get(level)
            if threshold is None or threshold != threshold:
                continue
            at = torch.tensor(threshold, dtype=scores.dtype, device=scores.device)
            if post_processor.enable_normalization:
                low, high = getattr(post_processor, f"{level}_min"), getattr(post_processor, f"{level}_max")
                normalised = cast("torch.Tensor", post_processor._normalize(scores[row], low, high, at))
                processed[row] = normalised.to(processed.dtype)
            if decided is not None and decided.dtype == torch.bool:
                # By raw scores: close to the threshold, normalising would round to it.
                above = scores[row] > _moved(threshold, level, post_processor)
                decided[row] = above.reshape(decided[row].shape)
        setattr(batch, score, processed)
        setattr(batch, decision, decided)
