# SPDX-License-Identifier: Apache-2.0
"""Reads ``predictions.csv`` of ``anomalib-uniad predict``: scores by product, in the order of the rows."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalib_uniad.category import UNKNOWN_PRODUCT
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import original

_COLUMNS = {"category", "raw_score", "threshold", "decision"}


@dataclass
class Series:
    """Images of a product.

    Attributes:
        scores (list[float]): Raw scores.
        anomalous (list[bool]): What was decided.
        thresholds (list[float]): By which; NaN where there was none.
    """

    scores: list[float] = field(default_factory=list)
    anomalous: list[bool] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)

    def last(self, count: int) -> tuple[NDArray[np.float64], int, float | None]:
        """Scores of the last images, how many of them are anomalous, and the last threshold."""
        threshold = self.thresholds[-1]
        known = threshold if 0 < threshold < math.inf else None
        return np.array(self.scores[-count:]), sum(self.anomalous[-count:]), known


@dataclass(frozen=True)
class Predictions:
    """Rows of one or several files.

    Attributes:
        products (dict[str, Series]): Those of each product; of models that know no products, of the product ``""``.
        unknown (list[bool]): Of all images, whether they are of an unknown product.
        models (set[str]): Hashes of the models that they are from, as far as the files have them.
    """

    products: dict[str, Series]
    unknown: list[bool]
    models: set[str]


def read_predictions(files: Sequence[Path]) -> Predictions:
    """Read files, one after the other; images without a score are left out.

    Args:
        files (Sequence[Path]): The files.

    Returns:
        Predictions: Their rows.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If one is something else, no row has a raw score, or they are from several models.
    """
    products: dict[str, Series] = {}
    unknown: list[bool] = []
    models: set[str] = set()
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"There is no file {file}: give the predictions.csv of `anomalib-uniad predict`.")
        for line, row in _rows(file):
            score = _number(file, line, row["raw_score"])
            if not math.isfinite(score):
                continue
            models |= {row.get("model") or ""} - {""}
            unknown.append(row["decision"] == UNKNOWN_PRODUCT)
            if not unknown[-1]:
                series = products.setdefault(original(row["category"]), Series())
                series.scores.append(score)
                series.anomalous.append(row["decision"] == "anomalous")
                series.thresholds.append(_number(file, line, row["threshold"]))
    names = ", ".join(map(str, files))
    if not unknown:
        raise InputError(f"{names}: no row has a raw_score, by which drift could be told.")
    if len(models) > 1:
        raise InputError(f"{names} are from several models ({', '.join(sorted(models))}): give those of one.")
    return Predictions(products, unknown, models)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            rows = csv.DictReader(opened, strict=True)
            if missing := _COLUMNS - set(rows.fieldnames or ()):
                raise InputError(f"{file} is no predictions.csv of `anomalib-uniad predict`: it has no {min(missing)}.")
            for row in rows:
                if None in row or None in row.values():
                    raise InputError(f"{file} is damaged: line {rows.line_num} has not one cell for each column.")
                yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{file} is damaged: {error}.") from error


def _number(file: Path, line: int, text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise InputError(f"{file}: line {line} has {text!r} in the place of a number.") from None
