# SPDX-License-Identifier: Apache-2.0
"""Up to which score a product is good: from a few good images, and defective ones where there are some.

Scores of good images are close to log-normal, with a longer tail of high ones. A model knows the images that it was
trained on better than others: those score lower, and more alike. By how much, in standard deviations of the logarithms
of the scores of training images, is similar for all products of a model, and so is how long the tail is. So it is
measured on all good images together: a product with few that were not trained on still has an estimate, and the more it
has, the more its own ones count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import norm, pearson3
from scipy.stats import t as student

from anomalib_uniad.metrics.functional import Floats

LEAST_GOOD = 5
"""Good images of a product without which nothing is decided."""
LEAST_OWN = 3
"""Of these, those that were not trained on, without which nothing is said about what is usual."""
OTHERS = 10.0
"""As how many images of its own those of all other products count, at most, for a product."""
NORMAL = 20.0
"""As how many images it counts that the logarithms of scores are normally distributed."""
MOST_SKEWNESS = 2.0
"""That of an exponential distribution; a higher one comes from single images."""
TYPICAL_RISE = (1.0, 1.5)
"""Mean and standard deviation of good images that were not trained on where there are none to measure."""

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
        good_scores (dict[str, float]): What the product's own good images say that were not trained on, see
            ``ModelMetadata``; empty if there are too few.
    """

    middle: float
    threshold: float
    rule: str
    good_scores: dict[str, float] = field(default_factory=dict)


def limits(
    products: Mapping[str, KnownScores], rate: float = 0.01, alike: Sequence[Sequence[str]] = ()
) -> dict[str, Limit]:
    """Find the threshold of each product.

    From good images alone, it is the upper prediction limit of a normal distribution of their logarithms: a further
    good image exceeds it with the given probability (https://www.itl.nist.gov/div898/handbook/, section 7.2.6). It is
    farther up by as much as the quantile of a Pearson type III distribution with the skewness of all good images is
    (https://pubs.usgs.gov/publication/tm4B5). With defective images, it is the nearest to that of all thresholds that
    make at most one mistake more than the best one, so that it depends on no single image.

    Args:
        products (Mapping[str, KnownScores]): Scores of each product.
        rate (float): Share of good images that may be called anomalous. Defaults to ``0.01``.
        alike (Sequence[Sequence[str]]): Products that are easily confused, and so share a limit. Defaults to none.

    Returns:
        dict[str, Limit]: Those of each product.

    Examples:
        >>> scores = np.exp(np.linspace(-1, 1, 21))
        >>> found = limits({"nut": KnownScores(good=scores), "bolt": KnownScores(good=scores[:3])}, rate=0.05)
        >>> round(found["nut"].threshold, 2), found["bolt"].threshold
        (2.99, nan)
    """
    group_of = {name: group[0] for group in alike for name in group}
    groups: dict[str, list[KnownScores]] = {}
    for name, known in products.items():
        groups.setdefault(group_of.get(name, name), []).append(known)
    together = {name: KnownScores.together(members) for name, members in groups.items()}
    distances = {name: _distances(known) for name, known in together.items()}
    logs = [np.log(scores) for known in together.values() for scores in (known.trained, known.good)]
    reach = _reach(_skewness(logs), rate)
    found = {
        name: _limit(known, distances[name], [d for other, d in distances.items() if other != name], rate, reach)
        for name, known in together.items()
    }
    return {name: found[group_of.get(name, name)] for name in products}


def _skewness(groups: Sequence[Floats]) -> float:
    """That of all values around the mean of their group, in its standard deviations; at least 0."""
    usable = [group for group in groups if len(group) >= LEAST_GOOD and group.std() > 0]
    cubes = np.concatenate([_NONE, *(((group - group.mean()) / group.std()) ** 3 for group in usable)])
    return float(np.clip(cubes.sum() / (len(cubes) + NORMAL), 0.0, MOST_SKEWNESS))


def _reach(skewness: float, rate: float) -> float:
    """How much farther up the limit of a distribution with a skewness is than that of a normal one."""
    return float(pearson3.isf(rate, skewness) / norm.isf(rate)) if rate < 0.5 else 1.0


def _of_training(known: KnownScores) -> tuple[float, float] | None:
    """Mean and standard deviation of the logarithms of training images; ``None`` where they do not tell."""
    logs = np.log(known.trained)
    return None if len(logs) < LEAST_GOOD or logs.std() == 0 else (float(logs.mean()), float(logs.std(ddof=1)))


def _distances(known: KnownScores) -> Floats:
    """How far good images that were not trained on lie from those that were, in their standard deviations."""
    of = _of_training(known)
    return _NONE if of is None else (np.log(known.good) - of[0]) / of[1]


def _limit(known: KnownScores, own: Floats, others: Sequence[Floats], rate: float, reach: float) -> Limit:
    images = f"{len(known.trained)} trained and {len(known.good)} other good images"
    of, rest = _of_training(known), np.concatenate([_NONE, *others])
    if of is None:
        of, own, rest = (0.0, 1.0), np.log(known.good), _NONE
        if len(own) < LEAST_GOOD:
            return Limit(np.nan, np.nan, f"none: {images}")
    values = np.concatenate([own, rest])
    weights = np.concatenate([np.ones(len(own)), np.full(len(rest), min(1.0, OTHERS / max(len(rest), 1)))])
    count = weights.sum() ** 2 / np.square(weights).sum() if len(values) else 0.0  # Kish's effective sample size
    if count < LEAST_GOOD:
        (middle, deviation), count = TYPICAL_RISE, float(len(known.trained))
        images += ", whose rise is assumed"
    else:
        middle = float(np.average(values, weights=weights))
        deviation = float(np.average(np.square(values - middle), weights=weights) * count / (count - 1)) ** 0.5
    above = reach * student.isf(rate, count - 1) * deviation * (1 + 1 / count) ** 0.5
    middle, limit = of[0] + of[1] * middle, of[0] + of[1] * (middle + above)
    rule = f"{100 * rate:g} % false alarms: {images}"
    if len(known.defective):
        good = np.concatenate([np.log(known.trained), np.log(known.good)])
        limit = _separating(good, np.log(known.defective), limit)
        rule = f"fewest mistakes: {images}, {len(known.defective)} defective"
    # A product whose images all score the same still has a scale.
    limit = max(limit, middle + 1e-3)
    return Limit(float(np.exp(middle)), float(np.exp(limit)), rule, _good_scores(of, own, others))


def _good_scores(of: tuple[float, float], own: Floats, others: Sequence[Floats]) -> dict[str, float]:
    """Middle of a product's own distances, and their spread around the middle of each product.

    Products differ in how much higher unseen images score: by how much, only its own can tell.
    """
    groups = [group for group in (own, *others) if len(group) > 1]
    freedoms = np.array([len(group) - 1.0 for group in groups])
    elsewhere = freedoms.sum() - (len(own) - 1)
    weights = np.array([1.0 if group is own else min(1.0, OTHERS / max(elsewhere, 1)) for group in groups])
    if len(own) < LEAST_OWN or (weights * freedoms).sum() < LEAST_GOOD - 1:
        return {}
    squares = np.array([np.square(group - group.mean()).sum() for group in groups])
    spread = (weights @ squares / (weights @ freedoms)) ** 0.5
    freedom = (weights @ freedoms) ** 2 / (weights**2 @ freedoms)
    return {
        "middle": float(np.exp(of[0] + of[1] * own.mean())),
        "spread": float(of[1] * spread),
        "images": float(len(own)),
        "freedom": float(freedom),
    }


def _separating(good: Floats, defective: Floats, wanted: float) -> float:
    """The nearest threshold to a wanted one that makes at most one mistake more than the best."""
    scores = np.unique(np.concatenate([good, defective]))
    between = (scores[1:] + scores[:-1]) / 2
    ends = np.array([scores[0] - 1e-3, scores[-1] + 1e-3, wanted])
    thresholds = np.concatenate([between, ends])
    mistakes = (good[:, None] > thresholds).sum(axis=0) + (defective[:, None] <= thresholds).sum(axis=0)
    allowed = thresholds[mistakes <= mistakes.min() + 1]
    return float(allowed[np.abs(allowed - wanted).argmin()])
