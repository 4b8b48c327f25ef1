# SPDX-License-Identifier: Apache-2.0
"""Exact metrics of scores against binary targets, all from one sort.

AUROC, average precision, F1max, AUPRO and the true positive rate at a false positive rate change only where a positive
is passed when a threshold sinks from the highest score to the lowest. ``rank`` counts, at each score that a positive
has, what is above it; that takes one sort of the negatives without their indices, which is several times as fast as one
with them, and each metric is then a sum over a few counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Ranking:
    """What lies above each of the T different scores that positives have, from the highest to the lowest.

    Attributes:
        thresholds (Floats): The scores ``(T,)``.
        below (Floats): The next lower score of any sample ``(T,)``; of the lowest of all, itself.
        true_positives (Counts): Positives that score at least so high ``(T,)``.
        false_positives (Counts): Negatives that score at least so high ``(T,)``.
        above (Counts): Negatives that score higher ``(T,)``.
        overlap (Floats): Sum of the weights of the positives that score at least so high ``(T,)``.
        positives (int): Number of positives.
        negatives (int): Number of negatives.
        highest (float): Highest score of all, NaN if there are none.
        lowest (float): Lowest score of all, NaN if there are none.
    """

    thresholds: Floats
    below: Floats
    true_positives: Counts
    false_positives: Counts
    above: Counts
    overlap: Floats
    positives: int
    negatives: int
    highest: float
    lowest: float


def rank(positives: Floats, negatives: Floats, weights: Floats | None = None) -> Ranking:
    """Count what lies above each score of a positive.

    Args:
        positives (Floats): Scores of the positives ``(P,)``, without NaN.
        negatives (Floats): Scores of the negatives ``(N,)``, without NaN; they are sorted in place.
        weights (Floats | None): Weights of the positives ``(P,)``; for AUPRO, one over the number of pixels of the
            region that a pixel is in. Defaults to ``None``, 1 for each.

    Returns:
        Ranking: The counts.

    Examples:
        >>> ranking = rank(np.array([0.9, 0.4]), np.array([0.4, 0.1]))
        >>> ranking.true_positives, ranking.false_positives, ranking.above
        (array([1, 2]), array([0, 1]), array([0, 0]))
    """
    order = np.argsort(positives)[::-1]
    descending = positives[order]
    last = np.flatnonzero(np.append(descending[1:] != descending[:-1], True)[: len(descending)])  # of each score
    thresholds = descending[last]
    negatives.sort()
    count = len(negatives)
    # Ascending, so that the search goes through memory in one direction.
    at_least = count - np.searchsorted(negatives, thresholds[::-1], side="left")[::-1]
    above = count - np.searchsorted(negatives, thresholds[::-1], side="right")[::-1]
    ends = [*descending[:1], *descending[-1:], *negatives[:1], *negatives[-1:]]
    # The next lower positive, the last has none; and the next lower negative, where there is one.
    below = np.append(thresholds[1:], thresholds[-1:])
    if count:
        lower = negatives[np.maximum(count - at_least - 1, 0)]
        is_lower = at_least < count
        is_last = np.arange(len(last)) == len(last) - 1
        below = np.where(is_lower & (is_last | (lower > below)), lower, below)
    total = np.arange(1, len(descending) + 1) if weights is None else np.cumsum(weights[order], dtype=np.float64)
    return Ranking(
        thresholds=thresholds,
        below=below,
        true_positives=(last + 1).astype(np.int64),
        false_positives=at_least.astype(np.int64),
        above=above.astype(np.int64),
        overlap=total[last].astype(np.float64),
        positives=len(descending),
        negatives=count,
        highest=float(max(ends, default=np.nan)),
        lowest=float(min(ends, default=np.nan)),
    )


def auroc(ranking: Ranking) -> float:
    """Area under the ROC curve: how likely a positive scores higher than a negative; equal scores count half.

    Args:
        ranking (Ranking): Counts of at least one positive and one negative.

    Returns:
        float: The area, from 0 to 1.

    Examples:
        >>> auroc(rank(np.array([0.9, 0.4]), np.array([0.4, 0.1])))
        0.875
    """
    passed = np.diff(ranking.true_positives, prepend=0)
    lower = ranking.negatives - (ranking.false_positives + ranking.above) / 2
    return float(np.dot(passed, lower) / (ranking.positives * ranking.negatives))


def average_precision(ranking: Ranking) -> float:
    """Average precision: precision at each threshold, weighted with the recall that it adds, without interpolation.

    Args:
        ranking (Ranking): Counts of at least one positive.

    Returns:
        float: The average, from 0 to 1.

    Examples:
        >>> round(average_precision(rank(np.array([0.9, 0.4]), np.array([0.5, 0.1]))), 4)
        0.8333
    """
    passed = np.diff(ranking.true_positives, prepend=0)
    precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
    return float(np.dot(passed, precision) / ranking.positives)


def f1_max(ranking: Ranking) -> float:
    """Highest F1 score of all thresholds.

    Args:
        ranking (Ranking): Counts of at least one positive.

    Returns:
        float: The score, from 0 to 1.

    Examples:
        >>> f1_max(rank(np.array([0.9, 0.4]), np.array([0.5, 0.1])))
        0.8
    """
    return float(_f1(ranking).max())


def f1_threshold(ranking: Ranking) -> float:
    """Threshold of the highest F1 score, for decisions by ``score > threshold``.

    It lies halfway between the lowest score that is to be called anomalous and the next lower one. (anomalib's
    threshold is that lowest score itself, which is then called normal.) Without positives it is the highest score, so
    that none is called anomalous, and without negatives just below the lowest one, so that all are.

    Args:
        ranking (Ranking): The counts.

    Returns:
        float: The threshold; NaN without any samples. Nothing is below a score of -inf, which stays normal.

    Examples:
        >>> f1_threshold(rank(np.array([0.9, 0.6]), np.array([0.5, 0.1])))
        0.55
    """
    if not ranking.positives:
        return ranking.highest
    if not ranking.negatives:
        return float(_just_below(ranking.thresholds[-1]))
    f1 = _f1(ranking)
    best = len(f1) - 1 - int(f1[::-1].argmax())  # of several equal ones the lowest, as in anomalib
    high, low = ranking.thresholds[best], ranking.below[best]
    with np.errstate(invalid="ignore"):  # there is nothing halfway between -inf and inf
        # Rounded to the scores' own type, as this is what it will be compared with.
        middle = (low / 2 + high / 2).astype(high.dtype)
    return float(middle if middle < high else _just_below(high))


def tpr_at_fpr(ranking: Ranking, fpr_limit: float) -> float:
    """Highest true positive rate of all thresholds with a false positive rate of at most a limit.

    Only rates that a threshold has are taken, without interpolation: with fewer negatives than one over the limit, not
    one of them may score as high as a positive that is found.

    Args:
        ranking (Ranking): Counts of at least one positive and one negative.
        fpr_limit (float): Highest false positive rate.

    Returns:
        float: The rate, from 0 to 1.

    Examples:
        >>> ranking = rank(np.array([0.9, 0.7, 0.4]), np.array([0.7, 0.3]))
        >>> round(tpr_at_fpr(ranking, 0.05), 4), tpr_at_fpr(ranking, 0.5)
        (0.3333, 1.0)
    """
    # Divided, not multiplied: 0.07 * 100 is more than 7, but 7 / 100 is 0.07.
    allowed = ranking.false_positives / ranking.negatives <= fpr_limit
    return float(ranking.true_positives[allowed].max(initial=0) / ranking.positives)


def aupro(ranking: Ranking, fpr_limit: float = 0.3) -> float:
    """Area under the curve of the per-region overlap, up to a false positive rate (MVTec AD, IJCV 2021, section 5.3).

    Args:
        ranking (Ranking): Counts of at least one positive and one negative pixel, with weights of one over the size
            of their region.
        fpr_limit (float): Highest false positive rate. Defaults to ``0.3``.

    Returns:
        float: The area as a part of the largest possible one, from 0 to 1.

    Examples:
        >>> aupro(rank(np.array([0.9, 0.4]), np.array([0.5, 0.1]), np.array([1.0, 1.0])), fpr_limit=1.0)
        0.75
    """
    limit = fpr_limit * ranking.negatives
    regions = ranking.overlap[-1]
    overlap = np.append(0.0, ranking.overlap / regions)  # (T + 1,)
    before, after = overlap[:-1], overlap[1:]
    # To each threshold, the curve goes straight to the right while negatives are passed, and then, where positives and
    # negatives share a score, up along a slope; after the last one, to the right again.
    start = np.append(0, ranking.false_positives).clip(max=limit)
    end = np.append(ranking.above, ranking.negatives).clip(max=limit)
    flat = np.dot(overlap, end - start)
    shared = ranking.false_positives - ranking.above
    width = ranking.false_positives.clip(max=limit) - ranking.above.clip(max=limit)
    share = np.divide(width, shared, out=np.zeros(len(shared)), where=shared > 0)  # of the slope left of the limit
    slopes = np.dot(before + (after - before) * share / 2, width)
    return float((flat + slopes) / limit)


def roc_curve(ranking: Ranking) -> tuple[Floats, Floats]:
    """Corners of the ROC curve.

    Args:
        ranking (Ranking): Counts of at least one positive and one negative.

    Returns:
        tuple[Floats, Floats]: False and true positive rates ``(2T + 2,)``, ascending.

    Examples:
        >>> roc_curve(rank(np.array([0.9]), np.array([0.5])))
        (array([0., 0., 0., 1.]), array([0., 0., 1., 1.]))
    """
    false = np.stack([ranking.above, ranking.false_positives], axis=1).ravel()
    true = np.repeat(np.append(0, ranking.true_positives), 2)[1:-1]
    false = np.concatenate([[0], false, [ranking.negatives]])
    true = np.concatenate([[0], true, [ranking.positives]])
    return false / ranking.negatives, true / ranking.positives


def precision_recall_curve(ranking: Ranking) -> tuple[Floats, Floats]:
    """Points of the precision-recall curve, at the scores of positives.

    Args:
        ranking (Ranking): Counts of at least one positive.

    Returns:
        tuple[Floats, Floats]: Precision and recall ``(T,)``, recall ascending.
    """
    precision = ranking.true_positives / (ranking.true_positives + ranking.false_positives)
    return precision, ranking.true_positives / ranking.positives


def _just_below(score: np.floating) -> np.floating:
    """Return the next lower number of the same type."""
    with np.errstate(over="ignore"):  # below the lowest finite number is -inf
        return np.nextafter(score, -np.inf, dtype=score.dtype)


def _f1(ranking: Ranking) -> Floats:
    called = ranking.true_positives + ranking.false_positives
    return 2 * ranking.true_positives / (called + ranking.positives)
