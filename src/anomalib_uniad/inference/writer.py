# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a prediction: ``predictions.csv`` and ``.jsonl``, the folders ``heatmaps`` and ``masks``."""

import csv
import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Literal

import numpy as np
from PIL import Image

from anomalib_uniad.errors import ExistingFileError
from anomalib_uniad.files import check_output, disk_error, plain, plain_path, replacing

from .heatmap import draw_inspection
from .images import HEATMAPS, MASKS, REGIONS, TABLE, ImageFile
from .inspection import Inspection, Picture

COLUMNS = (
    "path",
    "category",
    "raw_score",
    "normalised_score",
    "threshold",
    "decision",
    "regions",
    "defective_percent",
    "heatmap",
    "mask",
    "model",
    "thresholds",
    "error",
)
LONGEST_JPEG = 65_500  # pixels of a side
_LONGEST_NAME = 255  # bytes
# Heatmaps are to look at, and JPEG is written many times faster; PNG faster than by default, and not larger for masks.
_HOW: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 90, "subsampling": 0},
    ".png": {"format": "PNG", "compress_level": 1, "compress_type": zlib.Z_RLE},
}


class Writer:
    """Writes the results of a prediction; a context manager that keeps the csv file open.

    An image is done once its row is in the table. A row that cannot be written, because the disk is full, is in neither
    file, and an error says so; all rows before stay.

    Args:
        output (Path): Folder for the files; made if it is not there.
        files (Sequence[ImageFile]): All images of the prediction.
        pictures (bool): Whether heatmaps and masks are written. Defaults to ``True``.
        overwrite (bool): Replace files that are there; heatmaps of other images stay. Defaults to ``False``.
        origin (tuple[str, str]): By what is decided: hashes of the model and of its thresholds, for every row.
            Defaults to ``("", "")``.
        go_on (bool): Go on with a table of the same origin if one is there, and take images that ``files`` does not
            have; the pictures of such keep the extension of the image before their own. Rows of ``files`` with an error
            are taken out, to be judged again. Defaults to ``False``.

    Attributes:
        judged (set[str]): Absolute paths in the table that is gone on with.

    Raises:
        FileExistsError: If ``output`` is a file, a file that would be written is there already, or the table that is
            there is of another origin or has lost its predictions.jsonl.
    """

    def __init__(
        self,
        output: Path,
        files: Sequence[ImageFile],
        pictures: bool = True,
        overwrite: bool = False,
        origin: tuple[str, str] = ("", ""),
        go_on: bool = False,
    ) -> None:
        self.table, self.regions = output / TABLE, output / REGIONS
        go_on = go_on and not overwrite and self.table.exists()
        names = picture_names([file.name for file in files])
        self._names = dict(zip(files, names, strict=True)) if pictures else {}
        self._output, self._origin = output, origin
        self._written: dict[ImageFile, list[str]] = {}
        folders = [output / HEATMAPS, output / MASKS] if pictures else []
        for folder in folders:
            if folder.exists() and not folder.is_dir():
                msg = f"{folder} is a file, but the {folder.name} need a folder there: give another output folder."
                raise ExistingFileError(msg)
        planned = [folder / name for name in self._names.values() for folder in folders]
        planned += [output / HEATMAPS / name.with_suffix(".jpg") for name in self._names.values()]
        check_output(output, [self.table, self.regions, *planned], overwrite or go_on)
        for folder in folders or [output]:
            folder.mkdir(parents=True, exist_ok=True)
        self.judged: set[str] = set()
        if go_on:
            self.judged = _go_on(self.table, self.regions, origin, {str(file.path.absolute()) for file in files})
        mode = "w" if overwrite else "a" if go_on else "x"
        self._table, self._lines = _Rows(self.table, mode), _Rows(self.regions, mode)
        if not self._table.end:
            self._table.add(_csv_row(COLUMNS))

    def pictures(self, file: ImageFile, image: np.ndarray, inspection: Inspection) -> None:
        """Write heatmap and mask of an image; safe to call from several threads.

        Args:
            file (ImageFile): The image.
            image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
            inspection (Inspection): With map and, if something is known to decide by, mask.
        """
        self.save(file, draw_pictures(image, inspection))

    def save(self, file: ImageFile, pictures: Sequence[Picture]) -> None:
        """Write pictures that are drawn already, as :meth:`pictures` does.

        Args:
            file (ImageFile): The image.
            pictures (Sequence[Picture]): Of :func:`draw_pictures`.
        """
        name = self._names.get(file) or file.name.with_name(short_name(f"{file.name.name}.png"))
        written = []
        for folder, suffix, content in pictures:
            path = PurePath(folder, name.with_suffix(suffix))
            (self._output / path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._output / path, flush=False) as (part,):
                part.write_bytes(content)
            written.append(path.as_posix())
        self._written[file] = written

    def row(self, file: ImageFile, inspection: Inspection | None, error: str = "") -> None:
        """Write what is said about an image, at once, so that an interruption loses nothing.

        Args:
            file (ImageFile): The image.
            inspection (Inspection | None): ``None`` if there is none.
            error (str): Why there is none, or why a picture is missing. Defaults to ``""``.

        Raises:
            OSError: If it cannot be written.
        """
        found = inspection or Inspection("undecided", "", None, None, None)
        numbers = (found.raw_score, found.score, found.threshold)
        texts = ["" if number is None else f"{number:.7g}" for number in numbers]
        areas = ["", ""]
        if found.mask is not None:
            areas = [str(len(found.regions)), f"{sum(region.share for region in found.regions):.4g}"]
        word = "" if found.decision == "undecided" else found.decision
        heatmap, mask = [*self._written.pop(file, []), "", ""][:2]
        row = (str(file.path), found.product, *texts, word, *areas, heatmap, mask, *self._origin, error)
        values = dict(zip(COLUMNS, row, strict=True)) | {
            "raw_score": found.raw_score,
            "normalised_score": found.score,
            "threshold": found.threshold,
            "defective_percent": float(areas[1]) if areas[1] else None,
            "regions": [asdict(region) for region in found.regions],
        }
        end = self._lines.end
        self._lines.add(f"{json.dumps(values)}\n".encode())
        try:  # the last: an image is done once it is in the table
            self._table.add(_csv_row([plain_path(row[0]), *map(plain, row[1:])]))
        except BaseException:
            self._lines.cut(end)
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._table.close()
        self._lines.close()


def draw_pictures(image: np.ndarray, inspection: Inspection) -> list[Picture]:
    """Draw heatmap and mask of an image, as the files that :class:`Writer` writes.

    Args:
        image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
        inspection (Inspection): With map and, if something is known to decide by, mask.

    Returns:
        list[Picture]: The heatmap and, if there is one, the mask.
    """
    heatmap = draw_inspection(image, inspection)
    drawn = [(HEATMAPS, ".jpg" if max(heatmap.size) <= LONGEST_JPEG else ".png", heatmap)]
    if inspection.mask is not None:
        drawn.append((MASKS, ".png", Image.fromarray(inspection.mask.astype(np.uint8) * 255)))
    return [(folder, suffix, _encode(picture, suffix)) for folder, suffix, picture in drawn]


def _encode(picture: Image.Image, suffix: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, **_HOW[suffix])
    return file.getvalue()


class _Rows:
    """A file that grows by whole rows.

    Args:
        path (Path): The file.
        mode (str): As of ``open``.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._file = path.open(f"{mode}b", buffering=0)  # what is left in a buffer is written when the file is closed
        self.end = self._file.seek(0, os.SEEK_END)

    def add(self, row: bytes) -> None:
        """Write a row, or nothing and raise an error."""
        try:
            rest = memoryview(row)
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:  # Ctrl-C, too
            self.cut(self.end)
            if isinstance(error, OSError):
                raise disk_error(error.strerror or str(error), self._path) from error
            raise
        self.end += len(row)

    def cut(self, end: int) -> None:
        """Take out what is after a place."""
        self._file.truncate(end)
        self.end = self._file.seek(end)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _csv_row(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    # Without quotes, a "\r" would end the row.
    quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in cell for cell in cells) else csv.QUOTE_MINIMAL
    csv.writer(text, lineterminator="\n", quoting=quoting).writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")  # names of files need not be text


def _go_on(table: Path, regions: Path, origin: tuple[str, str], images: set[str]) -> set[str]:
    """Absolute paths in a table of the same origin.

    What a kill has cut off is taken out, as are rows that are in one file alone and those of ``images`` with an error.
    """
    paths: list[str] = []
    failed: list[bool] = []
    ends: list[int] = []  # of the header and of each row
    record, end = b"", 0
    with table.open("rb") as opened:
        for line in opened:
            record += line
            if not line.endswith(b"\n") or record.count(b'"') % 2:  # a quoted cell may have several lines
                continue
            try:
                cells = next(csv.reader([record.decode("utf-8", "surrogateescape")]))
            except csv.Error as error:
                raise _another(table) from error
            row = dict(zip(COLUMNS, cells, strict=False))
            fits = (row.get("model"), row.get("thresholds")) == origin if end else tuple(cells) == COLUMNS
            if not fits:
                raise _another(table)
            if end:
                paths.append(str(Path(row["path"]).absolute()))
                failed.append(bool(row.get("error")))
            record, end = b"", end + len(record)
            ends.append(end)
    if not end and not ",".join(COLUMNS).encode().startswith(record):
        raise _another(table)
    if paths and not regions.exists():
        raise ExistingFileError(
            f"There is no {regions.name} beside {table}, with a line for each row: choose another output folder, or "
            "set overwrite to true."
        )
    lines = [0]
    if paths:
        with regions.open("rb") as opened:
            for line, _ in zip(opened, paths, strict=False):
                if line.endswith(b"\n"):
                    lines.append(lines[-1] + len(line))
    count = len(lines) - 1
    kept = [index for index in range(count) if not (failed[index] and paths[index] in images)]
    if len(kept) == count:
        os.truncate(table, ends[count] if ends else 0)
        if regions.exists():
            os.truncate(regions, lines[-1])
    else:
        with replacing(table, regions) as parts:
            for file, places, part in zip((table, regions), (ends, lines), parts, strict=True):
                with file.open("rb") as older, part.open("wb") as newer:
                    newer.write(older.read(places[0]))
                    for index in kept:
                        older.seek(places[index])
                        newer.write(older.read(places[index + 1] - places[index]))
    return {paths[index] for index in kept}


def _another(table: Path) -> ExistingFileError:
    return ExistingFileError(
        f"{table} is not of this model and these thresholds: choose another output folder, or set overwrite to true."
    )


def picture_names(images: Sequence[PurePath]) -> list[PurePath]:
    """Choose the name of each image's mask: that of the image with ``.png``. Its heatmap has the same with ``.jpg``.

    Images that differ in the extension alone keep it before ``.png``, and if that is taken, get a number.

    Args:
        images (Sequence[PurePath]): Relative paths.

    Returns:
        list[PurePath]: Relative paths of the masks, all different also on file systems that ignore case.

    Examples:
        >>> names = picture_names([PurePath("good/a.jpg"), PurePath("b.png"), PurePath("b.bmp")])
        >>> [name.as_posix() for name in names]
        ['good/a.png', 'b.png.png', 'b.bmp.png']
    """
    names = [image.with_name(short_name(image.with_suffix(".png").name)) for image in images]
    counts = Counter(map(_folded, names))
    taken = {name for name, count in counts.items() if count == 1}
    for index, image in enumerate(images):
        if counts[_folded(names[index])] > 1:
            name, number = image.with_name(short_name(f"{image.name}.png")), 1
            while _folded(name) in taken:
                number += 1
                name = image.with_name(short_name(f"{image.name}_{number}.png"))
            taken.add(_folded(name))
            names[index] = name
    return names


def short_name(name: str) -> str:
    """A name that file systems take, which allow 255 bytes: a hash is in the place of the end of one with more.

    Examples:
        >>> short_name("a.png"), len(short_name("a" * 300 + ".png"))
        ('a.png', 255)
    """
    data = os.fsencode(name)
    if len(data) <= _LONGEST_NAME:
        return name
    end = f"~{hashlib.sha256(data).hexdigest()[:16]}{PurePath(name).suffix}"
    return data[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end  # no half characters


def _folded(name: PurePath) -> str:
    return name.as_posix().casefold()  # some file systems do not tell A from a
