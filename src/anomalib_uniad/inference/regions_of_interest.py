# SPDX-License-Identifier: Apache-2.0
"""Which part of an image counts, as a file of a person says: ``regions.yaml``.

everywhere: {boxes: [[0.1, 0.0, 0.9, 1.0]]}
products:
  bolt: {mask: masks/bolt.png}
  nut: {boxes: [[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.8]]}

Boxes are left, top, right and bottom in parts of the image, from 0 to 1. Of a mask, what is white counts; its path is
relative to the file. ``everywhere`` is for images of all products that have no region of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalib_uniad.checks import show
from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.files import is_there, lies_in, shortened
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import open_image, reason_of

from .metadata import ModelMetadata
from .product_file import check_products, read_products

Box = tuple[float, float, float, float]


class RegionError(InputError):
    """A region that does not fit to an image; the message does not name the image."""


@dataclass(frozen=True)
class RegionOfInterest:
    """Part of an image: a mask, or boxes.

    Attributes:
        name (str): What it is called in messages.
        mask (NDArray[np.bool_] | None): ``(h, w)``, for images of these proportions.
        boxes (tuple[Box, ...]): Left, top, right and bottom, from 0 to 1.
    """

    name: str
    mask: NDArray[np.bool_] | None = None
    boxes: tuple[Box, ...] = ()

    def of(self, size: Sequence[int]) -> NDArray[np.bool_]:
        """Return the pixels of an image that count.

        Args:
            size (Sequence[int]): Height ``H`` and width ``W`` of the image.

        Returns:
            NDArray[np.bool_]: ``(H, W)``.

        Raises:
            ValueError: If the image has other proportions than the mask.

        Examples:
            >>> RegionOfInterest("", boxes=((0.5, 0.0, 1.0, 0.5),)).of((2, 4)).astype(int)
            array([[0, 0, 1, 1],
                   [0, 0, 0, 0]])
        """
        height, width = size
        if self.mask is None:
            inside = np.zeros((height, width), bool)
            for left, top, right, bottom in self.boxes:  # at least a pixel of each
                columns = slice(int(left * width), max(round(right * width), int(left * width) + 1))
                inside[int(top * height) : max(round(bottom * height), int(top * height) + 1), columns] = True
            return inside
        rows, across = self.mask.shape
        if abs(height * across - width * rows) > max(rows, across, height, width):  # a pixel is rounding
            raise RegionError(
                f"the image has {height} x {width} pixels (height x width), which are other proportions than those of "
                f"{self.name}, {rows} x {across}"
            )
        resized = Image.fromarray(self.mask).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(resized, bool)


@dataclass(frozen=True)
class RegionsOfInterest:
    """Regions of products.

    Attributes:
        everywhere (RegionOfInterest | None): For images without a region of their own.
        products (dict[str, RegionOfInterest]): Those of products.
    """

    everywhere: RegionOfInterest | None = None
    products: dict[str, RegionOfInterest] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "RegionsOfInterest":
        """Read a file and its masks.

        Args:
            file (Path): The file.

        Raises:
            FileNotFoundError: If it or a mask is not there.
            ValueError: If it is something else; the message names what.
        """
        everywhere, products = read_products(file, "regions of interest", "everywhere")
        return cls(
            None if everywhere is None else _read(file, "everywhere", everywhere),
            {name: _read(file, name, region) for name, region in products.items()},
        )

    def content(self) -> bytes:
        """All of it, the same for the same regions."""
        regions = {"": self.everywhere, **dict(sorted(self.products.items()))}
        parts = []
        for name, region in regions.items():
            if region is not None:
                mask = b"" if region.mask is None else repr(region.mask.shape).encode() + region.mask.tobytes()
                parts.append(repr((name, region.boxes)).encode() + mask)
        return b"\n".join(parts)

    def check(self, metadata: ModelMetadata, has_raw_map: bool, file: Path) -> None:
        """Refuse what a model cannot do, before any work.

        Args:
            metadata (ModelMetadata): Of the model.
            has_raw_map (bool): Whether its raw maps are known.
            file (Path): Where the regions are from, for messages.

        Raises:
            ValueError: If it does not know a product, or scores of parts of images cannot be computed.
        """
        if not has_raw_map or not metadata.image_score:
            raise InputError(
                f"{file} cannot be used: the model's file has no raw maps, or does not say how a score follows from "
                "them; export it again with this version."
            )
        known = (*metadata.products, *metadata.categories, *metadata.category_thresholds)
        check_products(file, "regions", self.products, known)

    def region_of(self, product: str) -> RegionOfInterest | None:
        """Region of a product; ``None`` if all of the image counts.

        Args:
            product (str): Its name, empty if it is not known.
        """
        return self.products.get(product, self.everywhere)


def on_map(inside: NDArray[np.bool_], shape: tuple[int, int], geometry: Geometry | None = None) -> NDArray[np.bool_]:
    """Find the part of a map that shows a region.

    Args:
        inside (NDArray[np.bool_]): ``(H, W)``, of an image.
        shape (tuple[int, int]): Height ``h`` and width ``w`` of the map.
        geometry (Geometry | None): How images become the model's input. Defaults to ``None``, stretched.

    Returns:
        NDArray[np.bool_]: ``(h, w)``, the pixels at least half of which are inside; if there are none, all that are
        touched.

    Raises:
        ValueError: If the model does not see anything of it.
    """
    geometry = geometry or Geometry(shape)
    seen, covered = geometry.seen(inside.shape), geometry.covered(inside.shape)
    cut = Image.fromarray(inside[seen.rows, seen.columns].astype(np.float32))
    shares = np.asarray(cut.resize((covered.width, covered.height), Image.Resampling.BOX))
    result = np.zeros(shape, bool)
    result[covered.rows, covered.columns] = shares >= 0.5 if (shares >= 0.5).any() else shares > 0
    if not result.any():
        raise RegionError("its region of interest lies outside of the part of the image that the model looks at")
    return result


def _read(file: Path, name: str, value: Any) -> RegionOfInterest:
    if not isinstance(value, Mapping) or len(value) != 1 or not {"mask", "boxes"} & set(value):
        raise InputError(f"{file}: {name} must have mask or boxes, got {show(value)}.")
    if "mask" in value:
        path = file.parent / str(value["mask"])
        if not lies_in(path, [file.parent]):
            raise InputError(
                f"{file}: the mask {shortened(path)} of {shortened(name)} must lie in its folder or below, "
                "and not be hidden."
            )
        if not is_there(path):
            raise MissingFileError(f"{file}: there is no mask {shortened(path)} of {shortened(name)}.")
        try:
            with open_image(path) as picture:
                mask = np.asarray(picture.convert("L")) > 127
        except Exception as error:  # Pillow's decoders raise all kinds on damaged files
            reason = reason_of(error, path)
            raise InputError(f"{file}: the mask {path} of {name} is no image that can be read: {reason}.") from error
        if not mask.any():
            raise InputError(f"{file}: the mask {path} of {name} is empty: what is white in it counts.")
        return RegionOfInterest(str(path), mask)
    boxes = value["boxes"]
    if not isinstance(boxes, list) or not boxes:
        raise InputError(f"{file}: boxes of {name} must be a list of [left, top, right, bottom], got {show(boxes)}.")
    return RegionOfInterest(name, boxes=tuple(_box(file, name, box) for box in boxes))


def _box(file: Path, name: str, box: Any) -> Box:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(number) in {int, float} for number in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(
            f"{file}: a box of {name} must be [left, top, right, bottom] in parts of the image, from 0 to 1 and not "
            f"empty, got {show(box)}."
        )
    return box[0], box[1], box[2], box[3]
