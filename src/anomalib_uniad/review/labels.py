# SPDX-License-Identifier: Apache-2.0
"""Labels that a person has given: ``labels.csv`` of the review page, columns ``path``, ``product`` and ``label``.

The label is ``good``, ``defective`` or, where one was taken back, empty.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import original, real_path, shortened
from anomalib_uniad.label_names import labels_of
from anomalib_uniad.report.decisions import is_defective

Row = dict[str, str]


def read_rows(file: Path, columns: Iterable[str]) -> Iterator[tuple[int, Row]]:
    """Read a table that must have some columns, and may have others.

    Args:
        file (Path): The file.
        columns (Iterable[str]): Those that it must have.

    Yields:
        tuple[int, Row]: Number of the line, and the cells of a row.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table.
    """
    if not file.is_file():
        raise MissingFileError(f"There is no file {file}.")
    try:
        # File names need not be valid text: their bytes stay as they are.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if lacking := [name for name in columns if name not in (reader.fieldnames or [])]:
                there = shortened(", ".join(reader.fieldnames or ["none"]))
                text = f"{file} has no column {', '.join(lacking)}. Its columns, in UTF-8 and separated by commas, are:"
                raise InputError(f"{text} {there}.")
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{file} is damaged: line {reader.line_num} has not one cell for each column.")
                yield reader.line_num, {name: original(text) for name, text in row.items()}
    except csv.Error as error:
        raise InputError(f"{file} is damaged: {error}; it must be a csv in UTF-8.") from error


class Labels:
    """Labels by the path of an image, which may be written in another way: relative, or with links.

    Args:
        file (Path | None): ``labels.csv``; ``None`` for no labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        rows = () if file is None else read_rows(file, ("path", "label"))
        self._known = {row["path"]: is_defective(row["label"], "label", file, line) for line, row in rows if file}
        self._all: dict[str | Path, bool | None] = {_resolved(path): label for path, label in self._known.items()}
        self._all.update(self._known)

    def of(self, paths: Iterable[str], otherwise: Iterable[bool | None] | None = None) -> list[bool | None]:
        """Labels of images: ``True`` for defective, ``False`` for good, ``None`` if unknown.

        Args:
            paths (Iterable[str]): Their paths.
            otherwise (Iterable[bool | None] | None): Labels of images that are not in the file. Defaults to ``None``:
                by the names of folders.

        Raises:
            ValueError: If there is a file, and it has none of the images.
        """
        paths = list(paths)
        others = labels_of([Path(path) for path in paths]) if otherwise is None else list(otherwise)
        if self._file is None:
            return others
        keys = [path if path in self._known else _resolved(path) for path in paths]
        if not any(key in self._all for key in keys):
            first = next(iter(self._known), "no image")
            names = f"it has {shortened(first)}, and they are {shortened(paths[0])}, ..."
            raise InputError(f"{self._file} has none of these images: {names}")
        return [self._all.get(key, other) for key, other in zip(keys, others, strict=True)]


def _resolved(path: str) -> Path:
    try:
        return real_path(path)
    except ValueError:  # no path: it has a zero byte
        return Path(path)
