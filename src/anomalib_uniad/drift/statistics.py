# SPDX-License-Identifier: Apache-2.0
"""Whether the scores of a product have moved, though there may be defects among them.

The logarithms of good scores are close to normally distributed, with a mean m and a standard deviation s, which were
measured on n images. Of a window of N images, in which at most a share e is defective, the median lies where the
defects push it at most, and varies with the standard error of a sample median (Stuart and Ord, Kendall's
Advanced Theory of Statistics, volume 1, section 10.10; https://en.wikipedia.org/wiki/Median#Sampling_distribution):

    between m and m + s q,   q = Phi^-1(1 / (2 (1 - e)))        error s / (2 (1 - e) phi(q) sqrt(N))

To the error of the median comes that of m, and since s is measured as well, the sum is compared with Student's t.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm
from scipy.stats import t as student

Drift = Literal["", "higher", "lower", "anomalous", "unknown"]
FALSE_WARNINGS = 0.01
"""Share of products without drift for which there may be a warning."""
LEAST_IMAGES = 10
"""Images without which nothing is said."""


@dataclass(frozen=True)
class GoodScores:
    """Logarithms of the scores of good images.

    Attributes:
        middle (float): Their mean.
        spread (float): Their standard deviation.
        error (float): Standard error of the middle, in spreads.
        freedom (float): Degrees of freedom of the spread.
    """

    middle: float
    spread: float
    error: float
    freedom: float

    @classmethod
    def of_calibration(cls, measured: Mapping[str, float]) -> "GoodScores":
        """From ``good_scores`` of the metadata of an exported file."""
        return cls(math.log(measured["middle"]), measured["spread"], measured["images"] ** -0.5, measured["freedom"])

    @classmethod
    def of_reference(cls, scores: NDArray[np.floating]) -> "GoodScores":
        """From the scores of a good production ``(N,)``, with few defects: median, and median absolute deviation."""
        logs = to_logs(scores)
        spread = float(norm.ppf(0.75) ** -1 * np.median(np.abs(logs - np.median(logs))))
        # The spread varies as one of a normal sample of 0.37 times as many does; the middle as medians do.
        return cls(float(np.median(logs)), spread, (math.pi / 2 / len(logs)) ** 0.5, max(0.37 * len(logs) - 1, 1.0))

    def share_above(self, threshold: float, chance: float) -> float:
        """Largest share of good scores that may lie above a threshold, but for a chance that it is even more.

        As of tolerance limits of a normal distribution (https://www.itl.nist.gov/div898/handbook/, section 7.2.6.3).
        """
        distance = (math.log(threshold) - self.middle) / max(self.spread, 1e-9)
        error = (self.error**2 + distance**2 / (2 * self.freedom)) ** 0.5
        return float(norm.sf(distance - norm.isf(chance) * error))


@dataclass(frozen=True)
class Comparison:
    """A window of the images of a product, beside what is usual.

    Attributes:
        product (str): Its name.
        window (str): ``"all"`` or ``"last"``.
        images (int): How many images it has.
        times (float): How many times as high as good scores their median is; NaN if this is not known.
        lowest (float): Smallest ``times`` without a warning.
        highest (float): Largest ``times`` without a warning.
        anomalous (int): How many are anomalous.
        most (int): Most of them without a warning.
        drift (Drift): What has moved: ``"higher"`` or ``"lower"`` scores, more ``"anomalous"`` images, more of
            ``"unknown"`` products; empty if nothing has.
    """

    product: str
    window: str
    images: int
    times: float
    lowest: float
    highest: float
    anomalous: int
    most: int
    drift: Drift


def compare(
    product: str,
    window: str,
    scores: NDArray[np.floating],
    anomalous: int,
    good: GoodScores,
    threshold: float | None,
    defects: float = 0.1,
    chance: float = FALSE_WARNINGS / 6,
) -> Comparison:
    """Compare a window with what good scores are like.

    Args:
        product (str): Its name.
        window (str): Of which images the scores are.
        scores (NDArray[np.floating]): ``(N,)``.
        anomalous (int): How many of the images are anomalous.
        good (GoodScores): What good scores are like.
        threshold (float | None): By which was decided, if there is one.
        defects (float): Largest usual share of defective images. Defaults to ``0.1``.
        chance (float): Probability of a false warning in each of the three ways. Defaults to a sixth of
            ``FALSE_WARNINGS``, as there are two windows.
    """
    count = len(scores)
    pushed = float(norm.ppf(0.5 / (1 - defects)))
    far = float(student.isf(chance, good.freedom)) * good.spread
    above = 1 / (2 * (1 - defects) * norm.pdf(pushed))
    highest = pushed * good.spread + far * (above**2 / count + good.error**2) ** 0.5
    lowest = -far * (math.pi / 2 / count + good.error**2) ** 0.5
    moved = float(np.median(to_logs(scores))) - good.middle
    most = count
    if threshold is not None:
        most = at_most(count, defects + (1 - defects) * good.share_above(threshold, chance), chance)
    drift: Drift = "higher" if moved > highest else "lower" if moved < lowest else ""
    drift = drift or ("anomalous" if anomalous > most else "")
    times, least, largest = map(math.exp, (moved, lowest, highest))
    return Comparison(product, window, count, times, least, largest, anomalous, most, drift)


def at_most(count: int, share: float, chance: float) -> int:
    """The number among ``count`` that is exceeded with at most a chance, if each is one with probability ``share``.

    Examples:
        >>> at_most(50, 0.1, 0.01)
        10
    """
    return int(binom.isf(chance, count, min(share, 1.0)))


def to_logs(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithms; scores of 0 are the smallest number there is."""
    return np.log(np.maximum(np.asarray(scores, np.float64), np.finfo(np.float32).tiny))
