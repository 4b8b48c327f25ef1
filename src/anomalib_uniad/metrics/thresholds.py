# SPDX-License-Identifier: Apache-2.0
"""Thresholds of each category, learned at validation."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
    if type(post_processor) is not PostProcessor or not post_processor.enable_thresholding:
        return {"image": float("nan"), "pixel": float("nan")}
    found: dict[Level, float] = {}
    for level in ("image", "pixel"):
        decision = float(getattr(post_processor, f"normalized_{level}_threshold"))
        threshold = float(getattr(post_processor, f"{level}_threshold"))
        low, high = (float(getattr(post_processor, f"{level}_{end}")) for end in ("min", "max"))
        if not post_processor.enable_normalization or low != low:  # then anomalib compares the scores as they are
            found[level] = decision
        else:  # anomalib puts its threshold at 0.5, from where the sensitivity moves the decision
            found[level] = threshold + (decision - 0.5) * (high - low)
    return found


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
        scores, processed = scores.reshape(processed.shape), processed.clone()
        decided = None if decided is None else decided.clone()
        for row, category in enumerate(categories):
            threshold = thresholds.get(category, {}).get(level)
            if threshold is None or threshold != threshold:
                continue
            at = torch.tensor(threshold, dtype=scores.dtype, device=scores.device)
            if post_processor.enable_normalization:
                low, high = getattr(post_processor, f"{level}_min"), getattr(post_processor, f"{level}_max")
                processed[row] = post_processor._normalize(scores[row], low, high, at)
                at = getattr(post_processor, f"normalized_{level}_threshold").to(processed)
            if decided is not None and decided.dtype == torch.bool:
                decided[row] = (processed[row] > at).reshape(decided[row].shape)
        setattr(batch, score, processed)
        setattr(batch, decision, decided)
