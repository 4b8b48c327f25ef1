# SPDX-License-Identifier: Apache-2.0
"""One pass over files: each is read once, for all that is asked about it."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from anomalib_uniad.image_files import FORMATS, THREADS, Seen, check_file, describe, read_whole, reason_of, to_rgb

SIDE = 128  # pixels to which images are stretched for features
THUMB = 16  # of which near-copies are told
_AHEAD = 128  # files that are read before they are asked for

Item = TypeVar("Item")
Result = TypeVar("Result")


class Look(NamedTuple):
    """What is seen in an image file.

    Attributes:
        seen (Seen): Type, kind of pixels, size, and why it cannot be used.
        digest (bytes): Of the bytes of the file; empty if there are none.
        darkest (float): Nearly all pixels are brighter, 0 ... 255.
        brightest (float): Nearly all pixels are darker, 0 ... 255.
        limits (tuple[float, float] | None): Smallest and largest value, of images that have too many bits.
        thumb (np.ndarray | None): ``(16, 16, 3)``, float32.
        pixels (np.ndarray | None): ``(128, 128, 3)``, uint8.
    """

    seen: Seen
    digest: bytes = b""
    darkest: float = 0.0
    brightest: float = 255.0
    limits: tuple[float, float] | None = None
    thumb: np.ndarray | None = None
    pixels: np.ndarray | None = None

    @property
    def is_black(self) -> bool:
        """Whether 99 % of its pixels are nearly black."""
        return self.thumb is not None and self.brightest <= 20

    @property
    def is_white(self) -> bool:
        """Whether 99 % of its pixels are nearly white."""
        return self.thumb is not None and self.darkest >= 235


def look_closely(path: str | Path, value_range: tuple[float, float] | None = None) -> Look:
    """Read an image to its end, and make it small.

    Args:
        path (str | Path): The file.
        value_range (tuple[float, float] | None): See :func:`~anomalib_uniad.image_files.read_image`.
            Defaults to ``None``.

    Returns:
        Look: What is seen in it.
    """
    digest = b""
    try:
        check_file(path)
        data = Path(path).read_bytes()
        digest = hashlib.sha256(data).digest() if data else b""
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            seen = describe(image, value_range)
            read_whole(image, value_range)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if seen.depth:
                values = np.asarray(image)
                return Look(seen, digest, limits=(float(values.min()), float(values.max())))
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # JPEG can be decoded smaller
            pixels = cv2.resize(to_rgb(image, value_range), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return Look(Seen(reason_of(error, path)), digest)
    darkest, brightest = np.percentile(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (1, 99))
    thumb = pixels.reshape(THUMB, SIDE // THUMB, THUMB, SIDE // THUMB, 3).mean((1, 3), dtype=np.float32)
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return Look(seen, digest, float(darkest), float(brightest), None, thumb, pixels)


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """Apply a function to items in threads; results come in order, and only some are kept that are not asked for yet.

    Args:
        function (Callable[[Item], Result]): The function.
        items (Iterable[Item]): The items.
        threads (int): Number of threads. Defaults to ``4``.

    Yields:
        Result: Of each item.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
