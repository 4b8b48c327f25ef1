# SPDX-License-Identifier: Apache-2.0
"""Up to which score a product is good: from a few good images, and defective ones where there are some.

Scores of good images are close to log-normal. A model knows the images that it was trained on a little better than
others: it gives those lower scores. By how much is about the same for all of its products, so it is measured on all
good images that were not trained on, together, and a product with few of those still has as many scores to judge by as
it has training images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import t as student

from anomalib_uniad.metrics.functional import Floats

LEAST_GOOD = 5
"""Good images of a product without which nothing is decided."""

_NONE = np.zeros(0)


@dataclass(frozen=True)
class KnownScores:
    """Scores of a product's images of which is known what they are.

    Args:
        trained (Floats): Of good images that were trained on, at most some hundred ``(T,)``.
        good (Floats): Of good images that were not ``(N,)``.
        defective (Floats): ``(P,)``.
    """

    trained: Floats = field(default_factory=lambda: _NONE)
    good: Floats = field(default_factory=lambda: _NONE)
    defective: Floats = field(default_factory=lambda: _NONE)

    @classmethod
    def together(cls, products: Sequence["KnownScores"]) -> "KnownScores":
        """Scores of several products as if they were one."""
        names = ("trained", "good", "defective")
        return cls(*(np.concatenate([getattr(known, name) for known in products]) for name in names))

    def __post_init__(self) -> None:
        for name in ("trained", "good", "defective"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, np.maximum(values[np.isfinite(values)], np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class Limit:
    """What is known of a product's scores.

    Attributes:
        middle (float): Geometric mean of the scores of good images; NaN if there are too few.
        threshold (float): Scores above it are anomalous; NaN if there are too few good images to tell.
        rule (str): How it was found, and by how many images, for tables.
    """

    middle: float
    threshold: float
    rule: str


def rise_of(products: Mapping[str, KnownScores]) -> float:
    """How much higher good images score that were not trained on, as a difference of logarithms, over all products.

    Args:
        products (Mapping[str, KnownScores]): Scores of each product.

    Returns:
        float: The difference, weighted by what each product tells about it; 0 if there are no such images.
    """
    both = [known for known in products.values() if len(known.trained) and len(known.good)]
    rises = [np.log(known.good).mean() - np.log(known.trained).mean() for known in both]
    weights = [1 / (1 / len(known.good) + 1 / len(known.trained)) for known in both]
    return max(0.0, float(np.average(rises, weights=weights))) if both else 0.0


def limits(products: Mapping[str, KnownScores], rate: float = 0.01) -> dict[str, Limit]:
    """Find the threshold of each product.

    From good images alone, it is the upper prediction limit of a normal distribution of their logarithms: a further
    good image exceeds it with the given probability (https://www.itl.nist.gov/div898/handbook/, section 7.2.6). With
    defective images, it is the nearest to that of all thresholds that make at most one mistake more than the best one,
    so that it depends on no single image.

    Args:
        products (Mapping[str, KnownScores]): Scores of each product.
        rate (float): Share of good images that may be called anomalous. Defaults to ``0.01``.

    Returns:
        dict[str, Limit]: Those of each product.

    Examples:
        >>> scores = np.exp(np.linspace(-1, 1, 21))
        >>> found = limits({"nut": KnownScores(trained=scores), "bolt": KnownScores(good=scores[:3])}, rate=0.05)
        >>> round(found["nut"].threshold, 2), found["bolt"].threshold
        (2.99, nan)
    """
    rise = rise_of(products)
    return {name: _limit(known, rise, rate) for name, known in products.items()}


def _limit(known: KnownScores, rise: float, rate: float) -> Limit:
    good = np.concatenate([np.log(known.trained) + rise, np.log(known.good)])
    images = f"{len(known.trained)} trained and {len(known.good)} other good images"
    if len(good) < LEAST_GOOD:
        return Limit(np.nan, np.nan, f"none: {images}")
    middle, deviation = good.mean(), good.std(ddof=1)
    limit = middle + student.isf(rate, len(good) - 1) * deviation * (1 + 1 / len(good)) ** 0.5
    rule = f"{rate:.3g} false alarms: {images}"
    if len(known.defective):
        limit = _separating(good, np.log(known.defective), limit)
        rule = f"fewest mistakes: {images}, {len(known.defective)} defective"
    # A product whose images all score the same still has a scale.
    return Limit(float(np.exp(middle)), float(np.exp(max(limit, middle + 1e-3))), rule)


def _separating(good: Floats, defective: Floats, wanted: float) -> float:
    """The nearest threshold to a wanted one that makes at most one mistake more than the best."""
    scores = np.unique(np.concatenate([good, defective]))
    between = (scores[1:] + scores[:-1]) / 2
    ends = np.array([scores[0] - 1e-3, scores[-1] + 1e-3, wanted])
    thresholds = np.concatenate([between, ends])
    mistakes = (good[:, None] > thresholds).sum(axis=0) + (defective[:, None] <= thresholds).sum(axis=0)
    allowed = thresholds[mistakes <= mistakes.min() + 1]
    return float(allowed[np.abs(allowed - wanted).argmin()])
