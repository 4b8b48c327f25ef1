# SPDX-License-Identifier: Apache-2.0
"""Metadata of an exported file.

OpenVINO files keep it in the section ``model_info`` of their runtime information, ONNX files in ``metadata_props``.
Both hold text; values that are not text are written as JSON.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anomalib_uniad.checks import check_value_range, is_finite, show
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import shortened
from anomalib_uniad.geometry import Geometry, ResizeMode, check_crop

if TYPE_CHECKING:
    import openvino

Level = Literal["image", "pixel"]

SECTION = "model_info"
_ONNX_SECTION = "framework"  # where OpenVINO puts the metadata_props of an ONNX file
_TEXTS = ("model", "version", "precision")
_RANGE = ("image_min", "image_max", "pixel_min", "pixel_max")
_LONGEST = 1 << 16  # pixels of a side
REDUCTIONS = ("max", "top", "mean", "std")
_SENSITIVITY = ("image_sensitivity", "pixel_sensitivity")


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of an exported model, all of it optional.

    Args:
        model (str | None): Name of the model's class. Defaults to ``None``.
        version (str | None): Version of anomalib-uniad that exported it. Defaults to ``None``.
        image_size (tuple[int, int] | None): Height and width to which the model resizes. Defaults to ``None``.
        resize_mode (str | None): How it resizes, ``"pad"`` or ``"stretch"``. Defaults to ``None``, stretch.
        crop (tuple[int, int, int, int] | None): The part of each image that it looks at: top, left, height and width
            in pixels of the file. Defaults to ``None``, all of it.
        categories (tuple[str, ...]): Categories that it was trained on. Defaults to ``()``.
        thresholds (dict[str, float]): ``"image"`` and ``"pixel"``: raw scores and map values above it are anomalous,
            as learned, that is, at a sensitivity of 0.5. Defaults to ``{}``.
        category_thresholds (dict[str, dict[str, float]]): The same for some of the categories. Defaults to ``{}``.
        normalization (dict[str, float]): ``image_min``, ``image_max``, ``pixel_min`` and ``pixel_max`` of the raw
            scores and maps, and ``image_sensitivity`` and ``pixel_sensitivity`` if they are not 0.5. Only for models
            whose outputs are normalised by anomalib's post-processor. Defaults to ``{}``.
        training (dict[str, Any]): Dataset, number of images, epochs, seed. Defaults to ``{}``.
        value_range (tuple[float, float] | None): Pixel values that are black and white in images of more than 8 bits;
            such images are refused without it. Defaults to ``None``.
        precision (str | None): For example ``"FP32"`` or ``"INT8"``. Defaults to ``None``.
        products (tuple[str, ...]): Names of the products that the model recognises, in the order of the numbers in its
            inner tensor ``product``; scores and maps are then on one scale for all of them, with thresholds at 0.
            Defaults to ``()``, it recognises none.
        typical_scores (dict[str, float]): Typical raw score of a good image of each product. Defaults to ``{}``.
        good_scores (dict[str, dict[str, float]]): What was measured on good images of each product that were not
            trained on: ``"middle"``, the geometric mean of their raw scores, ``"images"``, from how many, ``"spread"``,
            the standard deviation of the logarithms, and ``"freedom"``, its degrees of freedom, to which images of
            other products contribute. Defaults to ``{}``.
        image_score (dict[str, Any]): How the raw score of an image follows from its raw map: the arguments
            ``reduction``, ``pool_size`` and ``top_fraction`` of :func:`~anomalib_uniad.inference.score.score_map`.
            Defaults to ``{}``, not known.

    Examples:
        >>> metadata = ModelMetadata(model="UniAD", image_size=(224, 224), thresholds={"image": 12.5})
        >>> metadata.to_properties()
        {'model': 'UniAD', 'image_size': '[224, 224]', 'thresholds': '{"image": 12.5}'}
        >>> ModelMetadata.from_properties(metadata.to_properties(), "model.onnx") == metadata
        True
    """

    model: str | None = None
    version: str | None = None
    image_size: tuple[int, int] | None = None
    resize_mode: ResizeMode | None = None
    crop: tuple[int, int, int, int] | None = None
    categories: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    category_thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    normalization: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    precision: str | None = None
    products: tuple[str, ...] = ()
    typical_scores: dict[str, float] = field(default_factory=dict)
    good_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    image_score: dict[str, Any] = field(default_factory=dict)

    def to_properties(self) -> dict[str, str]:
        """Return the known values as text, as they are written into a file.

        Raises:
            ValueError: If a value could not be read again, for example because it is not finite; names the key.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        known = {name: value for name, value in values.items() if value not in (None, (), {})}
        properties = {name: value if name in _TEXTS else _encode(name, value) for name, value in known.items()}
        ModelMetadata.from_properties(properties, "the metadata to write")
        return properties

    @classmethod
    def from_properties(cls, properties: Mapping[str, str], file: Path | str) -> "ModelMetadata":
        """Read the text of a file; other keys are ignored.

        Args:
            properties (Mapping[str, str]): For example the ``metadata_props`` of an ONNX file.
            file (Path | str): Name of the file, for messages.

        Raises:
            ValueError: If a value is malformed; the message names the file and the key.
        """
        values: dict[str, Any] = {name: properties[name] for name in _TEXTS if name in properties}
        for name, read in _READERS.items():
            if name in properties:
                try:
                    values[name] = read(_read_json(properties[name]))
                except (ValueError, OverflowError, RecursionError) as error:
                    msg = f"{file}: the metadata {name!r} is malformed: {shortened(error)}."
                    raise InputError(msg) from error
        return cls(**values)

    def write(self, model: "openvino.Model") -> None:
        """Put the metadata into a model that is about to be saved.

        Args:
            model (openvino.Model): The model, changed in place.
        """
        for name, text in self.to_properties().items():
            model.set_rt_info(text, [SECTION, name])

    @classmethod
    def read(cls, model: "openvino.Model", file: Path | str) -> "ModelMetadata":
        """Read the metadata of a model that OpenVINO has read from its own file or from an ONNX file.

        Args:
            model (openvino.Model): The model.
            file (Path | str): Name of the file, for messages.

        Raises:
            ValueError: If a value is malformed; the message names the file and the key.
        """
        properties = {}
        for section in (_ONNX_SECTION, SECTION):
            for name in (item.name for item in fields(cls)):
                if model.has_rt_info([section, name]):
                    properties[name] = str(model.get_rt_info([section, name]).value)
        return cls.from_properties(properties, file)

    @property
    def geometry(self) -> Geometry | None:
        """How images become the model's input; ``None`` if its size is not known."""
        if self.image_size is None:
            return None
        return Geometry(self.image_size, self.resize_mode or "stretch", self.crop)

    def hash_of_thresholds(self) -> str:
        """Hash of all by which images are decided; the same for the same thresholds."""
        known = (self.thresholds, self.category_thresholds, self.normalization, self.typical_scores)
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def range_of(self, level: Level) -> float | None:
        """Width of the range of raw values that is normalised to [0, 1]; ``None`` if it is not known."""
        low, high = (self.normalization.get(f"{level}_{end}") for end in ("min", "max"))
        if low is None or high is None:
            return None
        return high - low or 1.0  # as anomalib: all values were equal

    def center_of(self, level: Level) -> float | None:
        """Raw value that is normalised to 0.5; ``None`` if it is not known."""
        if level in self.thresholds:
            return self.thresholds[level]
        low, high = (self.normalization.get(f"{level}_{end}") for end in ("min", "max"))
        return None if low is None or high is None else (low + high) / 2

    def threshold_of(self, level: Level) -> float | None:
        """Raw value above which the model decides for an anomaly; ``None`` if it is not known."""
        center = self.center_of(level)
        return self.thresholds.get(level) if center is None else self.moved(center, level)

    def moved(self, threshold: float, level: Level) -> float:
        """A threshold as learned, moved by the sensitivity that anomalib's post-processor was given."""
        width = self.range_of(level) or 0.0
        return threshold + (0.5 - self.normalization.get(f"{level}_sensitivity", 0.5)) * width

    def threshold_of_product(self, name: str) -> float:
        """Raw score above which a model that recognises products calls one of this product anomalous.

        Args:
            name (str): The product.

        Returns:
            float: NaN if nothing is decided, infinite at sensitivities of 0 and 1.
        """
        threshold, beyond = self.category_thresholds.get(name, {}).get("image", math.nan), self._moved_by()
        return threshold + beyond * (threshold - self.typical_scores.get(name, math.nan)) if beyond else threshold

    def learned_of_product(self, name: str, threshold: float) -> float:
        """The learned threshold of a product that the sensitivity moves to a threshold.

        Args:
            name (str): The product.
            threshold (float): That of :meth:`threshold_of_product`.

        Raises:
            ValueError: If the sensitivity puts what is anomalous below what is typical of good images.
        """
        beyond = self._moved_by()
        if beyond <= -1 or math.isinf(beyond):
            sensitivity = self.normalization["image_sensitivity"]
            raise InputError(
                f"With an image_sensitivity of {sensitivity:g}, no threshold can be given: export the model with one "
                "above 0 and below 0.75."
            )
        typical = self.typical_scores.get(name, threshold / 2)
        return (threshold + beyond * typical) / (1 + beyond) if beyond else threshold

    def _moved_by(self) -> float:
        """How far the sensitivity moves thresholds of products, in distances of theirs from typical scores."""
        scaled = 1 - 2 * self.normalization.get("image_sensitivity", 0.5)  # on a scale from -1 to 1
        return scaled / (1 - abs(scaled)) if abs(scaled) < 1 else math.copysign(math.inf, scaled)


def _encode(name: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The metadata {name!r} cannot be written: {error}; got {show(value)}.") from error


def _read_json(text: str) -> Any:
    value = json.loads(text, parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")  # half a character could be written nowhere
    return value


def _refuse(constant: str) -> None:
    raise InputError(f"{constant} is not a number")


def _size(value: Any) -> tuple[int, int]:
    if not (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 0 < side <= _LONGEST for side in value)
    ):
        raise InputError(f"it must be [height, width] in pixels, at most {_LONGEST}, got {show(value)}")
    return value[0], value[1]


def _resize_mode(value: Any) -> ResizeMode:
    return Geometry((1, 1), value).resize_mode  # which refuses what it does not know


def _crop(value: Any) -> tuple[int, int, int, int]:
    check_crop(value)
    if value is None:
        raise InputError("it must be [top, left, height, width] in pixels, got None")
    return value[0], value[1], value[2], value[3]


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"it must be a list of names, got {show(value)}")
    return tuple(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"it must be an object, got {show(value)}")
    return value


def _numbers(value: Any, keys: tuple[str, ...]) -> dict[str, float]:
    for key, number in _mapping(value).items():
        if key not in keys:
            raise InputError(f"it may have {', '.join(keys)}, not {show(key)}")
        if not is_finite(number):
            raise InputError(f"{key} must be a number, got {show(number)}")
    return {key: float(number) for key, number in value.items()}


def _thresholds(value: Any) -> dict[str, float]:
    return _numbers(value, ("image", "pixel"))


def _category_thresholds(value: Any) -> dict[str, dict[str, float]]:
    return {category: _thresholds_of(category, thresholds) for category, thresholds in _mapping(value).items()}


def _thresholds_of(category: str, value: Any) -> dict[str, float]:
    try:
        return _thresholds(value)
    except ValueError as error:
        raise InputError(f"{category!r}: {error}") from error


def _typical_scores(value: Any) -> dict[str, float]:
    return _numbers(value, tuple(_mapping(value)))


def _good_scores(value: Any) -> dict[str, dict[str, float]]:
    keys = ("middle", "images", "spread", "freedom")
    found = {name: _numbers(measured, keys) for name, measured in _mapping(value).items()}
    for name, measured in found.items():
        if set(measured) != set(keys) or not all(number > 0 or key == "spread" for key, number in measured.items()):
            raise InputError(f"{name!r} must have {', '.join(keys)}, all positive, got {show(measured)}")
    return found


def _image_score(value: Any) -> dict[str, Any]:
    rule = _mapping(value)
    numbers = _numbers({key: rule.get(key) for key in ("pool_size", "top_fraction")}, ("pool_size", "top_fraction"))
    if (
        rule.get("reduction") not in REDUCTIONS
        or not 1 <= numbers["pool_size"] <= _LONGEST
        or not 0 < numbers["top_fraction"] <= 1
    ):
        raise InputError(f"it must have a known reduction, pool_size and top_fraction, got {show(value)}")
    return {"reduction": rule["reduction"], **numbers, "pool_size": int(numbers["pool_size"])}


def _normalization(value: Any) -> dict[str, float]:
    numbers = _numbers(value, _RANGE + _SENSITIVITY)
    for level in ("image", "pixel"):
        low, high = numbers.get(f"{level}_min"), numbers.get(f"{level}_max")
        if (low is None) != (high is None) or (low is not None and high is not None and low > high):
            raise InputError(f"{level}_min and {level}_max belong together and in this order, got {low} and {high}")
    return numbers


_READERS = {
    "image_size": _size,
    "resize_mode": _resize_mode,
    "crop": _crop,
    "categories": _names,
    "thresholds": _thresholds,
    "category_thresholds": _category_thresholds,
    "normalization": _normalization,
    "training": _mapping,
    "value_range": check_value_range,
    "products": _names,
    "typical_scores": _typical_scores,
    "good_scores": _good_scores,
    "image_score": _image_score,
}
