# SPDX-License-Identifier: Apache-2.0
"""Thresholds that a person has set, ``thresholds.yaml``, in the place of those that were learned.

global: {image: 12.5}
products:
  bolt: {image: 5.2, pixel: 3.1}
  nut: {image: 4.0}

All are in raw scores. What is not named stays as it was learned; ``global`` is for models that do not recognise
products.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from anomalib_uniad.checks import is_finite, show
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import shortened

from .metadata import Level, ModelMetadata
from .product_file import check_products, read_products

Levels = dict[Level, float]


@dataclass(frozen=True)
class GivenThresholds:
    """Thresholds of raw scores.

    Attributes:
        everywhere (Levels): ``"image"`` and ``"pixel"`` of all images, as far as they are given.
        products (dict[str, Levels]): The same of products.
    """

    everywhere: Levels = field(default_factory=dict)
    products: dict[str, Levels] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "GivenThresholds":
        """Read a file.

        Args:
            file (Path): The file.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is something else; the message names what.
        """
        everywhere, products = read_products(file, "thresholds", "global")
        levels = {name: _levels(file, name, value) for name, value in products.items()}
        return cls(_levels(file, "global", everywhere or {}), levels)

    def write(self, file: Path) -> None:
        """Write a file that :meth:`read` reads."""
        content: dict[str, Any] = {"global": dict(self.everywhere)} if self.everywhere else {}
        content["products"] = {name: dict(levels) for name, levels in self.products.items()}
        as_it_is = not any("\x85" in name for name in self.products)  # which PyYAML reads as the end of a line
        file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=as_it_is), encoding="utf-8")

    def put_into(self, metadata: ModelMetadata, file: Path) -> ModelMetadata:
        """The metadata of a model that decides by these thresholds.

        Args:
            metadata (ModelMetadata): As they are in its file.
            file (Path): Where the thresholds are from, for messages.

        Raises:
            ValueError: If the model does not know a product, or a global threshold is given for one that decides by
                those of products.
        """
        known = dict.fromkeys(metadata.products or (*metadata.categories, *metadata.category_thresholds))
        check_products(file, "thresholds", self.products, known)
        if self.everywhere and metadata.products:
            raise InputError(f"{file} has a global threshold, but the model decides by one of each product: set those.")

        def as_learned(levels: Mapping[Any, float], name: str = "") -> dict[str, float]:
            """Without anomalib's sensitivity, by which the thresholds of the metadata are moved when it is decided."""
            if metadata.products:
                moved = {"image": metadata.learned_of_product(name, levels["image"])} if "image" in levels else {}
                return {**levels, **moved}
            return {level: number - metadata.moved(0.0, level) for level, number in levels.items()}

        of_products = {
            name: {**metadata.category_thresholds.get(name, {}), **as_learned(self.products.get(name, {}), name)}
            for name in known
        }
        typical = dict(metadata.typical_scores)
        for name, levels in of_products.items():
            if metadata.products and "image" in levels:  # without a typical score, too little was known of the product
                typical[name] = min(typical.get(name, 0.5 * levels["image"]), 0.99 * levels["image"])
        return replace(
            metadata,
            thresholds={**metadata.thresholds, **as_learned(self.everywhere)},
            category_thresholds={name: dict(levels) for name, levels in of_products.items() if levels},
            typical_scores=typical,
        )


def _levels(file: Path, name: str, value: Any) -> Levels:
    if not isinstance(value, dict) or set(value) - {"image", "pixel"}:
        raise InputError(f"{file}: {shortened(name)} must have image or pixel, got {show(value)}.")
    for level, number in value.items():
        if not is_finite(number) or number <= 0:
            raise InputError(f"{file}: {level} of {shortened(name)} must be a positive number, got {show(number)}.")
    return {level: float(number) for level, number in value.items()}
