# SPDX-License-Identifier: Apache-2.0
"""Raw score, normalised score and decision from the output of a model."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from anomalib_uniad.category import find_category
from anomalib_uniad.errors import InputError

from .metadata import ModelMetadata
from .predictor import Output

AUTO = "auto"


class NoCategoryError(InputError):
    """An image whose category is not known, or has no threshold."""


@dataclass(frozen=True)
class Decision:
    """Scores and decision of one image; unknown values are ``None``.

    Args:
        category (str): Its category, as it was given or as the model recognises it; empty if neither.
        raw_score (float | None): The score as trained, without upper limit.
        normalised_score (float | None): The score in [0, 1]; 0.5 is the threshold that was learned.
        threshold (float | None): Of the raw score, or of the normalised one where the raw one is unknown; scores above
            it are anomalous.
        anomalous (bool | None): The decision.
        unknown (bool): Whether it is of a product that the model does not know.
    """

    category: str = ""
    raw_score: float | None = None
    normalised_score: float | None = None
    threshold: float | None = None
    anomalous: bool | None = None
    unknown: bool = False


class Decider:
    """Decides as the model does, or by the threshold of a category.

    Scores of models with a post-processor are normalised and cut to [0, 1], those of models without it are raw. The
    metadata tells which; in files without metadata, a model that decides itself is taken to normalise.

    Args:
        metadata (ModelMetadata): Metadata of the file.
        decides (bool): Whether the model has an output ``pred_label``.
        has_raw_score (bool): Whether the raw score is available beside the normalised one.
        category (str): Category whose threshold is used for all images; ``"auto"`` takes the last folder in the path
            that has the name of a category; empty leaves the decision to the model.
        given (ModelMetadata | None): The metadata with other thresholds than the model decides by itself, which are
            used in their place. Defaults to ``None``.

    Raises:
        ValueError: If the file has no threshold for the category; the message lists those that it has. Or if other
            thresholds need raw scores, which the file does not have.
    """

    def __init__(
        self,
        metadata: ModelMetadata,
        decides: bool,
        has_raw_score: bool,
        category: str = "",
        given: ModelMetadata | None = None,
    ) -> None:
        self._model = metadata
        self._metadata = metadata if given is None else given
        self._category = category
        self._width, self._center = metadata.range_of("image"), metadata.center_of("image")
        self.known = self._width is not None
        self.normalised = self.known or (metadata.model is None and decides)
        self._has_raw_score = has_raw_score
        if given is not None and self.normalised and not self._has_raw_score:
            raise InputError("The file has no raw scores, by which thresholds that are given could decide.")
        if category and category != AUTO:
            self._threshold_of(category)

    def category_of(self, path: PurePath) -> str:
        """Return the category by which an image is decided.

        Args:
            path (PurePath): Path of the image.

        Returns:
            str: The category that was given, or with ``"auto"`` the one in the path; empty if none was given.

        Raises:
            ValueError: If no folder in the path has the name of a category, or the category has no threshold.
        """
        if self._category != AUTO:
            return self._category
        known = {*self._metadata.categories, *self._metadata.category_thresholds}
        category = find_category(path, known)
        if not category:
            names = ", ".join(sorted(known)) or "none"
            raise NoCategoryError(
                f"No folder in the path {path} has the name of a category of the model ({names}): give the category "
                "instead of 'auto'."
            )
        self._threshold_of(category)
        return category

    def check(self, paths: Sequence[PurePath]) -> None:
        """Refuse images of which none has a category, before they are judged.

        Args:
            paths (Sequence[PurePath]): Their paths.

        Raises:
            ValueError: Of the first image, if it is so for all.
        """
        for path in paths:
            with suppress(NoCategoryError):
                self.category_of(path)
                return
        for path in paths:
            self.category_of(path)

    def decide(self, output: Output, category: str | None = None) -> Decision:
        """Decide about an image.

        Args:
            output (Output): Output of the model.
            category (str | None): Its category, empty if it is not known. Defaults to ``None``, see
                :meth:`category_of`.

        Returns:
            Decision: Scores and decision.

        Raises:
            ValueError: If the model's scores contradict its metadata.
        """
        category = self.category_of(output.file.path) if category is None else category
        if output.score is None:
            return Decision(category)
        if output.product is not None:
            return self._of_product(output, output.product, category)
        raw, normalised, threshold, anomalous = self._of_model(output)
        if category:
            threshold = self._threshold_of(category)
            # Without a raw score, the normalised one is cut at an end of the range, and the threshold lies inside.
            anomalous = raw > threshold if raw is not None else normalised == 1.0
        elif self._metadata is not self._model and raw is not None:
            threshold = self._metadata.threshold_of("image")
            anomalous = None if threshold is None else raw > threshold
        return Decision(category, raw, normalised, threshold, anomalous)

    def rescored(self, output: Output, raw: float) -> Output:
        """An output with another raw score, as the model would have put it out.

        Args:
            output (Output): Of the model.
            raw (float): Of its image.
        """
        metadata, changed = self._model, replace(output, score=raw, raw_score=raw)
        if output.product is None and not self.normalised:
            return changed
        if output.product is None:
            changed.score = float(np.clip((raw - (self._center or 0)) / (self._width or 1) + 0.5, 0, 1))
        else:
            name = metadata.products[output.product]
            threshold = metadata.category_thresholds.get(name, {}).get("image")
            if output.unknown or threshold is None:
                changed.score = output.score
                return changed
            changed.score = float(_normalised(raw, threshold, metadata.typical_scores[name]))
        changed.label = changed.score > 1 - metadata.normalization.get("image_sensitivity", 0.5)
        return changed

    def product_of(self, output: Output, category: str = "") -> str:
        """Name of the product that an image is judged as; empty if it is not known.

        Args:
            output (Output): Of the model.
            category (str): What was given. Defaults to ``""``, nothing.
        """
        if category or output.product is None or output.unknown:
            return category
        return self._metadata.products[output.product]

    def shown_map(self, output: Output, category: str | None = None) -> np.ndarray:
        """Scale the map of an image to [0, 1] for a heatmap.

        Args:
            output (Output): Output of the model.
            category (str | None): As of :meth:`decide`. Defaults to ``None``.

        Returns:
            np.ndarray: ``(H, W)``, 0.5 at the pixel threshold of the image's category, else of the model; without a
            threshold, relative to the range of the map.

        Raises:
            ValueError: If the output has no map.
        """
        shown, metadata = output.anomaly_map, self._metadata
        if shown is None:
            raise InputError(f"There is no anomaly map of {output.file.path}.")
        category = self.category_of(output.file.path) if category is None else category
        if output.product is not None:
            return self._map_of_product(shown, output.raw_map, metadata.products[output.product], category)
        of_category = metadata.category_thresholds.get(category, {}).get("pixel")
        if not category and metadata is not self._model:
            of_category = metadata.thresholds.get("pixel")
        if self.normalised and shown.min() >= 0 and shown.max() <= 1:
            width = metadata.range_of("pixel")
            if of_category is None or width is None or output.raw_map is None:
                return shown
            return np.clip((output.raw_map - of_category) / width + 0.5, 0, 1)
        threshold = metadata.threshold_of("pixel") if of_category is None else of_category
        if threshold:
            return np.clip(shown / (2 * threshold), 0, 1)
        return (shown - shown.min()) / (np.ptp(shown) or 1)

    def mask_threshold(self, decision: Decision) -> float | None:
        """Value of :meth:`shown_map` above which a pixel is defective; ``None`` if there is nothing by which to tell.

        Args:
            decision (Decision): About the image.
        """
        known = {**self._metadata.thresholds, **self._metadata.category_thresholds.get(decision.category, {})}
        if "pixel" not in known:
            return None
        return 1 - self._metadata.normalization.get("pixel_sensitivity", 0.5) if self.normalised else 0.5

    def _of_product(self, output: Output, product: int, category: str) -> Decision:
        """Decide by the scale of all products; as of the product that was given, if one was."""
        raw, normalised, metadata = output.raw_score, output.score, self._metadata
        if not category and output.unknown:
            return Decision("", raw, normalised, None, True, unknown=True)
        name = category or metadata.products[product]
        threshold = metadata.category_thresholds.get(name, {}).get("image")
        if threshold is None or raw is None:
            return Decision(name, raw)
        anomalous = output.label
        if category or metadata is not self._model:
            normalised = float(_normalised(raw, threshold, metadata.typical_scores[name]))
            anomalous = normalised > 1 - metadata.normalization.get("image_sensitivity", 0.5)
        moved = metadata.threshold_of_product(name)
        return Decision(name, raw, normalised, moved if math.isfinite(moved) else None, anomalous)

    def _map_of_product(self, shown: np.ndarray, raw_map: np.ndarray | None, own: str, given: str) -> np.ndarray:
        """A map that was made by the threshold of a product, by that of the one that was given."""
        old = self._model.category_thresholds.get(own, {}).get("pixel")
        new = self._metadata.category_thresholds.get(given or own, {}).get("pixel")
        if old == new:
            return shown
        if new is not None and raw_map is not None:
            return np.asarray(_normalised(raw_map, new, 0.0), shown.dtype)
        if old is None or new is None:
            return np.full_like(shown, 0.5)
        scaled = 2.0 * shown - 1  # from -1 to 1
        raw = old * (1 + scaled / np.maximum(1 - np.abs(scaled), 1e-6))
        return np.asarray(_normalised(raw, new, 0.0), shown.dtype)

    def _of_model(self, output: Output) -> tuple[float | None, float | None, float | None, bool | None]:
        """Raw and normalised score, threshold and decision of the model, without a category."""
        score, metadata = output.score, self._model
        if score is None:
            return None, None, None, None
        threshold = metadata.threshold_of("image")
        if not self.normalised or not 0 <= score <= 1:  # outside of [0, 1] if it was never validated
            self._check_range(score)
            return score, None, threshold, None if threshold is None else score > threshold
        if self._width is None or self._center is None:
            return None, score, 0.5, output.label
        raw = output.raw_score
        if raw is None and 0 < score < 1:
            raw = (score - 0.5) * self._width + self._center
        rounding = 0.02 + 0.01 * abs(raw or 0) / self._width  # generous, for bf16
        # Where all scores of the validation were equal, anomalib only tells those above and below from it.
        equal = metadata.normalization.get("image_min") == metadata.normalization.get("image_max")
        if (
            raw is not None
            and not equal
            and abs(np.clip((raw - self._center) / self._width + 0.5, 0, 1) - score) > rounding
        ):
            msg = f"The model normalises a score of {raw:g} to {score:g}, which its metadata 'normalization' does not."
            raise InputError(msg)
        anomalous = output.label
        if anomalous is None:
            anomalous = score > 1 - metadata.normalization.get("image_sensitivity", 0.5)
        return raw, score, threshold, anomalous

    def _check_range(self, score: float) -> None:
        if self.known:
            msg = f"The model puts out a score of {score:g}, which its metadata says is normalised to [0, 1]."
            raise InputError(msg)

    def _threshold_of(self, category: str) -> float:
        thresholds = {name: of["image"] for name, of in self._metadata.category_thresholds.items() if "image" in of}
        if category not in thresholds:
            there = f"it has those of {', '.join(thresholds)}" if thresholds else "it has none of any category"
            raise NoCategoryError(f"The model has no threshold of the category {category!r}: {there}.")
        threshold = self._metadata.moved(thresholds[category], "image")
        if self.normalised and (self._width is None or self._center is None):
            msg = "The thresholds of categories are raw scores, but the metadata lacks how scores are normalised."
            raise InputError(msg)
        if self._width is not None and self._center is not None and not self._has_raw_score:
            low, high = self._center - self._width / 2, self._center + self._width / 2
            if not low <= threshold < high:
                raise InputError(
                    f"The threshold {threshold:g} of the category {category!r} is outside of what the model's scores "
                    f"can tell apart, {low:g} to {high:g}."
                )
        return threshold


def _normalised(raw: Any, threshold: float, typical: float) -> Any:
    """A raw value as models that recognise products put it out: 0.5 at the threshold, 0.25 where it is typical."""
    beyond = (raw - threshold) / (threshold - typical)
    return 0.5 + 0.5 * beyond / (1 + np.abs(beyond))
