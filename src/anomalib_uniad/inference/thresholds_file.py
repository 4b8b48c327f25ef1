# SPDX-License-Identifier: Apache-2.0
"""Thresholds that a person has set, ``thresholds.yaml``, in the place of those that were learned.

global: {image: 12.5}
products:
  bolt: {image: 5.2, pixel: 3.1}
  nut: {image: 4.0}

All are in raw scores. What is not named stays as it was learned; ``global`` is for models that do not recognise
products.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from anomalib_uniad.errors import InputError, MissingFileError

from .metadata import Level, ModelMetadata

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
        if not file.is_file():
            raise MissingFileError(f"There is no file {file} with thresholds.")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is not yaml: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not content or set(content) - {"global", "products"}:
            raise InputError(f"{file} must have the keys global or products, got {content!r}.")
        products = content.get("products") or {}
        if not isinstance(products, dict):
            raise InputError(f"{file}: products must name products, got {products!r}.")
        everywhere = _levels(file, "global", content.get("global") or {})
        return cls(everywhere, {str(name): _levels(file, str(name), levels) for name, levels in products.items()})

    def write(self, file: Path) -> None:
        """Write a file that :meth:`read` reads."""
        content: dict[str, Any] = {"global": dict(self.everywhere)} if self.everywhere else {}
        content["products"] = {name: dict(levels) for name, levels in self.products.items()}
        file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def check(self, known: Mapping[str, Any], file: Path) -> None:
        """Refuse products that a model does not know.

        Args:
            known (Mapping[str, Any]): Those that it does know, as keys.
            file (Path): Where the thresholds are from, for the message.
        """
        if unknown := [name for name in self.products if name not in known]:
            names = ", ".join(known) or "none"
            raise InputError(f"{file} has thresholds of {', '.join(unknown)}, but the model knows {names}.")

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
        self.check(known, file)
        if self.everywhere and metadata.products:
            raise InputError(f"{file} has a global threshold, but the model decides by one of each product: set those.")

        def as_learned(levels: Mapping[Any, float]) -> dict[str, float]:
            """Without anomalib's sensitivity, by which the thresholds of the metadata are moved when it is decided.

            On the scale of all products, it moves what is decided about in the end.
            """
            if metadata.products:
                return {**levels}
            return {level: number - metadata.moved(0.0, level) for level, number in levels.items()}

        of_products = {
            name: {**metadata.category_thresholds.get(name, {}), **as_learned(self.products.get(name, {}))}
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
        raise InputError(f"{file}: {name} must have image or pixel, got {value!r}.")
    for level, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise InputError(f"{file}: {level} of {name} must be a positive number, got {number!r}.")
    return {level: float(number) for level, number in value.items()}
