# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad drift``: compares a time of production with the calibration, or with a good time."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import check_output, plain, replacing

from .picture import Panel, draw
from .predictions import Predictions, read_predictions
from .statistics import FALSE_WARNINGS, LEAST_IMAGES, Comparison, GoodScores, at_most, compare

TABLE, PICTURE = "drift.csv", "drift.png"
UNKNOWN = "unknown products"
_LOOK = "look at focus, light and position of the camera"


@dataclass(frozen=True)
class Report:
    """What has drifted.

    Attributes:
        sentences (list[str]): One for each product, and one for images of unknown products.
        files (list[Path]): What was written.
        drift (bool): Whether there is a warning.
    """

    sentences: list[str]
    files: list[Path]
    drift: bool


def report_drift(
    predictions: Sequence[Path],
    model: Path | None = None,
    reference: Path | None = None,
    output: Path = Path("drift"),
    window: int = 50,
    defects: float = 0.1,
    overwrite: bool = False,
) -> Report:
    """Compare predictions with the calibration of a model, or with predictions of a good time; write table and picture.

    Args:
        predictions (Sequence[Path]): ``predictions.csv``, one or several in the order of time.
        model (Path | None): The exported file, whose metadata have the calibration. Defaults to ``None``.
        reference (Path | None): ``predictions.csv`` of a good time, in the place of the calibration. Defaults to
            ``None``.
        output (Path): Folder of ``drift.csv`` and ``drift.png``. Defaults to ``"drift"``.
        window (int): The last images, which are compared besides all. Defaults to ``50``.
        defects (float): Largest usual share of defective images. Defaults to ``0.1``.
        overwrite (bool): Replace files that are there. Defaults to ``False``.

    Returns:
        Report: What has drifted.

    Raises:
        ValueError: If nothing is known of good scores, files are from different models, or an argument is out of its
            range.
    """
    check_at_least("window", window, LEAST_IMAGES)
    if not 0 <= defects < 0.5:
        raise InputError(f"defects must be at least 0 and less than 0.5, got {defects}.")
    files = [output / TABLE, output / PICTURE]
    check_output(output, files, overwrite)
    found = read_predictions(predictions)
    good, usual = _good_scores(found, predictions, model, reference)
    compared = {
        name: [
            compare(name, label, *series.last(count)[:2], good[name], series.last(count)[2], defects)
            for label, count in _windows(len(series.scores), window)
        ]
        for name, series in sorted(found.products.items())
        if name in good and len(series.scores) >= LEAST_IMAGES
    }
    compared[UNKNOWN] = [
        _compare_unknown(label, found.unknown[-count:], max(defects, usual))
        for label, count in _windows(len(found.unknown), window)
        if len(found.unknown) >= LEAST_IMAGES
    ]
    since = "at calibration" if reference is None else f"in {reference}"
    sentences = [
        _sentence(name, compared[name], since) if name in compared else _nothing(name, len(series.scores), name in good)
        for name, series in sorted(found.products.items())
    ]
    sentences += [_unknown_sentence(compared[UNKNOWN])] if any(found.unknown) and compared[UNKNOWN] else []
    panels = [
        Panel(name or "all images", series, good.get(name), _drift(compared.get(name, ())))
        for name, series in sorted(found.products.items())
    ]
    output.mkdir(parents=True, exist_ok=True)
    with replacing(*files, overwrite=overwrite) as (table, picture):
        _write(table, [row for rows in compared.values() for row in rows])
        draw(panels, window).savefig(picture)
    return Report(sentences, files, any(map(_drift, compared.values())))


def _good_scores(
    found: Predictions, predictions: Sequence[Path], model: Path | None, reference: Path | None
) -> tuple[dict[str, GoodScores], float]:
    """What good scores of each product are like, and the usual share of unknown products, 0 if it is not known."""
    models, measured = found.models, {}
    if model is not None:
        from anomalib_uniad.inference.compiled import read_metadata  # needs OpenVINO

        metadata, digest = read_metadata(model)
        measured = metadata.good_scores
        models = models | {digest} if models else models
    good = {name: GoodScores.of_calibration(of) for name, of in measured.items()}
    usual = 0.0
    if reference is not None:
        before = read_predictions([reference])
        models = models | before.models
        good = {
            name: GoodScores.of_reference(np.array(series.scores))
            for name, series in before.products.items()
            if len(series.scores) >= LEAST_IMAGES
        }
        usual = float(np.mean(before.unknown))
    if len(models) > 1:
        names = ", ".join(str(file) for file in (*predictions, reference, model) if file is not None)
        raise InputError(f"{names} belong to different models, whose scores cannot be compared.")
    if not good.keys() & found.products.keys() and found.products:
        where = "no model is given" if model is None else f"{model} does not have those of its calibration"
        where = where if reference is None else f"{reference} has less than {LEAST_IMAGES} images of each product"
        raise InputError(
            f"Nothing is known of the good scores of {', '.join(found.products) or 'any product'}: {where}; give "
            "--model, exported by this version after a training with product_calibration, or --reference."
        )
    return good, usual


def _windows(count: int, window: int) -> list[tuple[str, int]]:
    return [("all", count), *([("last", window)] if count > window else [])]


def _compare_unknown(label: str, unknown: Sequence[bool], usual: float) -> Comparison:
    most = at_most(len(unknown), usual, FALSE_WARNINGS / 2)
    drift = sum(unknown) > most
    numbers = (math.nan, math.nan, math.nan, sum(unknown), most)
    return Comparison(UNKNOWN, label, len(unknown), *numbers, "unknown" if drift else "")


def _drift(rows: Sequence[Comparison]) -> str:
    """Word for what the rows of a product say, that of the last images first."""
    return next((row.drift for row in reversed(rows) if row.drift), "")


def _images(row: Comparison) -> str:
    return f"the last {row.images} images" if row.window == "last" else f"all {row.images} images"


def _sentence(name: str, rows: Sequence[Comparison], since: str) -> str:
    row = next((row for row in reversed(rows) if row.drift), rows[-1])
    scores = f"{name or 'All'}: scores of {_images(row)} are {row.times:.3g} times as high as good ones were {since}"
    if row.drift == "higher":
        trust = f" before trusting its {row.anomalous} anomalous ones" if row.anomalous else ""
        return f"{scores}: {_LOOK}{trust}."
    if row.drift == "lower":
        return f"{scores}: defects may be missed; {_LOOK}."
    if row.drift == "anomalous":
        return (
            f"{name or 'All'}: {row.anomalous} of {_images(row)} are anomalous, where at most {row.most} were to be "
            f"expected: either many are defective, or {_LOOK}."
        )
    return f"{scores}, no drift ({row.lowest:.3g} to {row.highest:.3g} is usual)."


def _nothing(name: str, count: int, known: bool) -> str:
    if not known:
        return (
            f"{name or 'All'}: nothing is known of its good scores; give --reference with {LEAST_IMAGES} of its images."
        )
    return f"{name or 'All'}: {count} images are too few to tell, {LEAST_IMAGES} are needed."


def _unknown_sentence(rows: Sequence[Comparison]) -> str:
    row = next((row for row in reversed(rows) if row.drift), rows[-1])
    text = f"{row.anomalous} of {_images(row)} show no product that the model knows"
    if row.drift:
        return f"{text}, where at most {row.most} were to be expected: {_LOOK}."
    return f"{text}, no drift (at most {row.most} is usual)."


def _write(file: Path, rows: Sequence[Comparison]) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(Comparison.__dataclass_fields__)
        for row in rows:
            table.writerow([_cell(value) for value in vars(row).values()])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(plain(value))
