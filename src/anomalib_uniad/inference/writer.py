# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a prediction: ``predictions.csv`` and the folder ``heatmaps``."""

import csv
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from types import TracebackType

import numpy as np

from anomalib_uniad.errors import ExistingFileError
from anomalib_uniad.files import check_output
from anomalib_uniad.geometry import Geometry

from .decision import Decision
from .heatmap import draw_heatmap
from .images import HEATMAPS, TABLE, ImageFile

COLUMNS = ("path", "category", "raw_score", "normalised_score", "threshold", "decision", "heatmap", "error")
_WORDS = {True: "anomalous", False: "normal", None: ""}


class Writer:
    """Writes the results of a prediction; a context manager that keeps the csv file open.

    Args:
        output (Path): Folder for the files; made if it is not there.
        files (Sequence[ImageFile]): All images of the prediction.
        heatmaps (bool): Whether heatmaps are written. Defaults to ``True``.
        overwrite (bool): Replace files that are there; heatmaps of other images stay. Defaults to ``False``.
        geometry (Geometry | None): How images became the model's input. Defaults to ``None``, stretched.

    Raises:
        FileExistsError: If ``output`` is a file, or a file that would be written is there already.
    """

    def __init__(
        self,
        output: Path,
        files: Sequence[ImageFile],
        heatmaps: bool = True,
        overwrite: bool = False,
        geometry: Geometry | None = None,
    ) -> None:
        self.table = output / TABLE
        names = heatmap_names([file.name for file in files])
        paths = {file: output / HEATMAPS / name for file, name in zip(files, names, strict=True)}
        self._heatmaps = paths if heatmaps else {}
        self._output, self._written = output, dict[ImageFile, str]()
        self._geometry = geometry
        if heatmaps and (output / HEATMAPS).exists() and not (output / HEATMAPS).is_dir():
            msg = f"{output / HEATMAPS} is a file, but the heatmaps need a folder there: give another output folder."
            raise ExistingFileError(msg)
        check_output(output, [self.table, *self._heatmaps.values()], overwrite)
        (output / HEATMAPS if heatmaps else output).mkdir(parents=True, exist_ok=True)
        # File names need not be valid text: their bytes are written unchanged.
        mode = "w" if overwrite else "x"
        self._file = self.table.open(mode, newline="", encoding="utf-8", errors="surrogateescape")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._row(COLUMNS)

    def heatmap(self, file: ImageFile, image: np.ndarray, anomaly_map: np.ndarray) -> None:
        """Write the heatmap of an image; safe to call from several threads.

        Args:
            file (ImageFile): The image.
            image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
            anomaly_map (np.ndarray): ``(h, w)`` in [0, 1].
        """
        path = self._heatmaps[file]
        path.parent.mkdir(parents=True, exist_ok=True)
        # Faster than Pillow's default, and not larger for pictures that are mostly texture.
        draw_heatmap(image, anomaly_map, self._geometry).save(path, compress_level=1, compress_type=zlib.Z_RLE)
        self._written[file] = path.relative_to(self._output).as_posix()

    def row(self, file: ImageFile, decision: Decision, error: str = "") -> None:
        """Write the row of an image and flush it, so that an interruption loses nothing."""
        numbers = (decision.raw_score, decision.normalised_score, decision.threshold)
        texts = ("" if number is None else f"{number:.7g}" for number in numbers)
        heatmap = self._written.get(file, "")
        word = "unknown" if decision.unknown else _WORDS[decision.anomalous]
        self._row((str(file.path), decision.category, *texts, word, heatmap, error))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _row(self, values: Sequence[str]) -> None:
        self._csv.writerow(values)
        self._file.flush()


def heatmap_names(images: Sequence[PurePath]) -> list[PurePath]:
    """Choose the name of each image's heatmap: that of the image with ``.png``.

    Images that differ in the extension alone keep it before ``.png``, and if that is taken, get a number.

    Args:
        images (Sequence[PurePath]): Relative paths.

    Returns:
        list[PurePath]: Relative paths of the heatmaps, all different also on file systems that ignore case.

    Examples:
        >>> names = heatmap_names([PurePath("good/a.jpg"), PurePath("b.png"), PurePath("b.bmp")])
        >>> [name.as_posix() for name in names]
        ['good/a.png', 'b.png.png', 'b.bmp.png']
    """
    names = [image.with_suffix(".png") for image in images]
    counts = Counter(map(_folded, names))
    taken = {name for name, count in counts.items() if count == 1}
    for index, image in enumerate(images):
        if counts[_folded(names[index])] > 1:
            name, number = image.with_name(f"{image.name}.png"), 1
            while _folded(name) in taken:
                number += 1
                name = image.with_name(f"{image.name}_{number}.png")
            taken.add(_folded(name))
            names[index] = name
    return names


def _folded(name: PurePath) -> str:
    return name.as_posix().casefold()  # some file systems do not tell A from a
