# SPDX-License-Identifier: Apache-2.0
"""Which part of an image a model sees, and where it lies in the model's input and anomaly map.

Imports neither torch nor anomalib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from anomalib_uniad.errors import InputError

ResizeMode = Literal["stretch", "pad"]


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Geometry:
    """How an image becomes the input of a model: a fixed crop, padding or stretching, and a resize.

    Args:
        image_size (tuple[int, int]): Height and width of the model's input, and of its map.
        resize_mode (str): ``"stretch"`` to that size, or ``"pad"``: the image keeps its proportions, in the middle,
            and its edge is repeated on two sides. Defaults to ``"stretch"``.
        crop (tuple[int, int, int, int] | None): The part of each image that is used: top, left, height and width in
            pixels of the file. Defaults to ``None``, all of it.

    Raises:
        ValueError: If ``resize_mode`` or ``crop`` cannot be.

    Examples:
        >>> geometry = Geometry((224, 224), "pad", crop=(0, 100, 300, 600))
        >>> geometry.seen((400, 800))
        Box(top=0, left=100, height=300, width=600)
        >>> geometry.covered((400, 800))
        Box(top=56, left=0, height=112, width=224)
    """

    image_size: tuple[int, int]
    resize_mode: ResizeMode = "stretch"
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.resize_mode not in get_args(ResizeMode):
            choices = " or ".join(map(repr, get_args(ResizeMode)))
            raise InputError(f"resize_mode must be {choices}, got {self.resize_mode!r:.500}.")
        check_crop(self.crop)

    @property
    def least(self) -> tuple[int, int]:
        """Height and width that an image has to have at least."""
        return (1, 1) if self.crop is None else (self.crop[0] + self.crop[2], self.crop[1] + self.crop[3])

    def check(self, size: Sequence[int]) -> None:
        """Refuse an image in which the crop does not lie.

        Args:
            size (Sequence[int]): Its height and width.

        Raises:
            ValueError: If the crop does not lie in it; the message does not name the file.
        """
        if self.crop is not None and (size[0] < self.least[0] or size[1] < self.least[1]):
            raise InputError(
                f"the image has {size[0]} x {size[1]} pixels (height x width), but the model's crop {list(self.crop)} "
                f"needs at least {self.least[0]} x {self.least[1]}"
            )

    def seen(self, size: Sequence[int]) -> Box:
        """Return the part of an image that the model sees.

        Args:
            size (Sequence[int]): Height and width of the image.

        Returns:
            Box: In pixels of the image.

        Raises:
            ValueError: If the crop does not lie in the image.
        """
        self.check(size)
        return Box(0, 0, size[0], size[1]) if self.crop is None else Box(*self.crop)

    def covered(self, size: Sequence[int]) -> Box:
        """Return the part of the input and the map that shows the image; around it is padding.

        Args:
            size (Sequence[int]): Height and width of the image.

        Returns:
            Box: In pixels of the map.

        Raises:
            ValueError: If the crop does not lie in the image.
        """
        height, width = self.image_size
        if self.resize_mode == "stretch":
            return Box(0, 0, height, width)
        seen = self.seen(size)
        inside = fitted((seen.height, seen.width), self.image_size)
        return Box((height - inside[0]) // 2, (width - inside[1]) // 2, *inside)


def fitted(size: Sequence[int], into: tuple[int, int]) -> tuple[int, int]:
    """Return the largest size that keeps the proportions of a size and lies in another.

    Args:
        size (Sequence[int]): Height and width.
        into (tuple[int, int]): Height and width that are not exceeded.

    Returns:
        tuple[int, int]: Height and width, rounded to whole pixels, at least 1.

    Examples:
        >>> fitted((100, 400), (224, 224))
        (56, 224)
    """
    (height, width), (most_rows, most_columns) = size, into
    rows = (2 * height * most_columns + width) // (2 * width)  # height * most_columns / width, rounded
    columns = (2 * width * most_rows + height) // (2 * height)
    return min(max(rows, 1), most_rows), min(max(columns, 1), most_columns)


def check_crop(crop: Any) -> None:
    """Refuse what is not a crop.

    Args:
        crop (Any): Top, left, height and width, or ``None``.

    Raises:
        ValueError: If it is something else.
    """
    if crop is None:
        return
    numbers = isinstance(crop, Sequence) and len(crop) == 4 and all(type(number) is int for number in crop)
    if not numbers or min(crop[:2]) < 0 or min(crop[2:]) < 1:
        msg = f"crop must be [top, left, height, width] in pixels of the image files, or null, got {crop!r:.500}."
        raise InputError(msg)
