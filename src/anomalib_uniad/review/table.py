# SPDX-License-Identifier: Apache-2.0
"""Reads ``predictions.csv``, that of a test or prediction of anomalib or that of ``anomalib-uniad predict``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomalib_uniad.category import UNKNOWN_PRODUCT
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import is_there
from anomalib_uniad.report.decisions import is_defective
from anomalib_uniad.report.pictures import picture_of
from anomalib_uniad.report.runs import find_newest

from .labels import Labels, Row, read_rows

EVERYWHERE = ""
"""Name of the group of all images where one threshold decides about all products."""


@dataclass
class Image:
    """An image with a score.

    Attributes:
        number (int): Its place in the table, from 0.
        path (str): As it is in the table.
        category (str): As it is in the table.
        score (float): The raw score.
        defective (bool | None): Its label; ``None`` if unknown.
        picture (Path | None): The picture to show: its heatmap or, without one, the image; ``None`` without a file.
        has_caption (bool): Whether a line of text is below the picture, as ``predict`` writes it.
    """

    number: int
    path: str
    category: str
    score: float
    defective: bool | None
    picture: Path | None = None
    has_caption: bool = False


@dataclass
class Group:
    """Images that are decided by the same threshold.

    Attributes:
        name (str): The product, or :data:`EVERYWHERE`.
        threshold (float | None): By which was decided; ``None`` without one.
        images (list[Image]): Those with a score, in the order of the table.
    """

    name: str
    threshold: float | None = None
    images: list[Image] = field(default_factory=list)

    def distance(self, image: Image) -> float:
        """How far an image is from being called something else; without a threshold, the highest score is nearest."""
        return -image.score if self.threshold is None else abs(image.score - self.threshold)

    def wrong(self) -> list[Image]:
        """False alarms and missed defects, as they were decided."""
        if self.threshold is None:
            return []
        threshold = self.threshold
        return [image for image in self.images if image.defective not in {None, image.score > threshold}]


@dataclass
class Table:
    """Predictions of images.

    Attributes:
        file (Path): The csv.
        groups (list[Group]): By name.
        left_out (list[tuple[str, str]]): Images that are not counted: path, and why.
    """

    file: Path
    groups: list[Group]
    left_out: list[tuple[str, str]]


def find_table(source: Path) -> Path:
    """Find the newest ``predictions*.csv`` of a folder; if it has none, of its sub-folders.

    Args:
        source (Path): Folder of a run or prediction, the folder that holds it, or the file itself.

    Raises:
        FileNotFoundError: If there is none.
    """
    if source.is_file():
        return source
    found = find_newest(source, ("predictions*.csv",)) if source.is_dir() else None
    if found is None:
        raise MissingFileError(f"There is no predictions.csv: neither {source} nor a folder in it has one.")
    return found


def read_table(file: Path, labels: Labels | None = None, images: Path | None = None) -> Table:
    """Read predictions, find the pictures beside them, and group them by what decides about them.

    Groups are products that the model recognises or that were given to ``predict``; the categories of a test whose
    thresholds differ; or else all images.

    Args:
        file (Path): The csv.
        labels (Labels | None): Labels that count more than those of the table. Without one in the table, the names of
            folders tell. Defaults to ``None``.
        images (Path | None): Folder of the images, to show those without a heatmap. Defaults to ``None``: those in the
            folder of the table and in the working directory.

    Raises:
        ValueError: If it is another table, or has no raw score.
    """
    rows = list(read_rows(file, ("path", "category", "raw_score", "threshold", "decision")))
    paths = [row["path"] for _, row in rows]
    has_labels = bool(rows) and "label" in rows[0][1]
    own = [is_defective(row["label"], "label", file, line) for line, row in rows] if has_labels else None
    known = (labels or Labels()).of(paths, own)
    names = _groups([row for _, row in rows])
    categories = len({row["category"] for _, row in rows})
    groups: dict[str, Group] = {}
    left_out: list[tuple[str, str]] = []
    for number, ((line, row), name, label) in enumerate(zip(rows, names, known, strict=True)):
        score = _number(row, "raw_score", file, line)
        threshold = _number(row, "threshold", file, line)
        if row.get("error") or score is None or name is None:
            why = "it has no raw score" if score is None else "it shows none of the model's products"
            left_out.append((row["path"], row.get("error") or why))
            continue
        group = groups.setdefault(name, Group(name))
        group.threshold = threshold if group.threshold is None else group.threshold
        picture, has_caption = _picture(file.parent, row, categories, images)
        group.images.append(Image(number, row["path"], row["category"], score, label, picture, has_caption))
    if not groups:
        raise InputError(f"{file} has no raw score of any image, by which thresholds could be set.")
    return Table(file, [groups[name] for name in sorted(groups)], left_out)


def _groups(rows: Sequence[Row]) -> Iterator[str | None]:
    """Name of each row's group; ``None`` for an image of an unknown product."""
    thresholds = {row["threshold"] for row in rows if row["threshold"]}
    # `predict` has the product in the category; anomalib has the category of the data set there.
    column = "category"
    if rows and "product" in rows[0]:
        column = "product" if any(row["product"] for row in rows) else "category" if len(thresholds) > 1 else ""
    for row in rows:
        yield None if row["decision"] == UNKNOWN_PRODUCT else row[column] if column else EVERYWHERE


def _number(row: Row, name: str, file: Path, line: int) -> float | None:
    try:
        value = float(row[name] or "nan")
    except ValueError as error:
        raise InputError(f"{file} is damaged: {name} in line {line} is {row[name][:40]!r}, not a number.") from error
    return value if math.isfinite(value) else None


def _picture(folder: Path, row: Row, categories: int, images: Path | None) -> tuple[Path | None, bool]:
    """The heatmap of an image or, without one, the image; and whether there is a line of text below it."""
    if row.get("heatmap") and is_there(folder / row["heatmap"], [folder]):
        return folder / row["heatmap"], True
    return picture_of(folder, row["path"], row["category"], categories == 1, images), False
