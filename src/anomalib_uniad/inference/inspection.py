# SPDX-License-Identifier: Apache-2.0
"""What is said about an image."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .regions import Region

Word = Literal["normal", "anomalous", "unknown", "undecided"]
Picture = tuple[str, str, bytes]  # folder, ending of its name, content


@dataclass(frozen=True)
class Inspection:
    """What a model says about an image of H x W pixels.

    Attributes:
        decision (str): ``"normal"``, ``"anomalous"``, ``"unknown"`` if it shows none of the model's products, or
            ``"undecided"`` if the model has no threshold of it.
        product (str): Product that was given, or that the model recognises; empty if neither.
        score (float | None): From 0 to 1, 0.5 at the threshold; ``None`` if the model does not normalise.
        raw_score (float | None): As trained; ``None`` if the file does not have it.
        threshold (float | None): Of the raw score.
        anomaly_map (NDArray[np.float32] | None): ``(H, W)``, from 0 to 1, NaN outside of the model's crop and of the
            region of interest; ``None`` if the model has no map.
        mask (NDArray[np.bool_] | None): ``(H, W)``, what is defective; ``None`` without map or threshold.
        regions (list[Region]): Connected parts of the mask, the highest peak first.
        region_of_interest (NDArray[np.bool_] | None): ``(H, W)``, what counts; ``None`` if all of the image does.
        map_threshold (float | None): Values of the map above it are defective; ``None`` if nothing is decided by it.
    """

    decision: Word
    product: str
    score: float | None
    raw_score: float | None
    threshold: float | None
    anomaly_map: NDArray[np.float32] | None = field(default=None, repr=False)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    regions: list[Region] = field(default_factory=list)
    region_of_interest: NDArray[np.bool_] | None = field(default=None, repr=False)
    map_threshold: float | None = None

    def without_maps(self) -> "Inspection":
        """What a row needs, which may wait in memory or go to another process: of the mask, that there is one."""
        mask = None if self.mask is None else np.empty((0, 0), bool)
        return replace(self, anomaly_map=None, mask=mask, region_of_interest=None)
