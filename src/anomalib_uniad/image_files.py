# SPDX-License-Identifier: Apache-2.0
"""Image files: the one rule by which they become pixels, and checks that they can be read.

Imports neither torch nor anomalib.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_uniad.errors import InputError

# Those of anomalib, which are torchvision's; a test compares them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Pillow's modes with more than 8 bits, of which anomalib cuts off everything above 255.
CUT_OFF = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
SHOWN = 5  # files in a message
THREADS = 4


def read_image(path: str | Path, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image as RGB: the one rule for training, test, prediction and all that compares them.

    Grey, palette, CMYK and transparent images are converted by Pillow as in anomalib; transparency is dropped. The
    orientation in EXIF data is ignored, as in anomalib: pixels are taken as they are stored. Animated files give their
    first frame, and of colours with 16 bits Pillow keeps the higher 8. Grey images with more than 8 bits and floating
    point images need ``value_range``, which is mapped to 0 ... 255 without rounding; values outside of it are clipped.

    Args:
        path (str | Path): The file.
        value_range (tuple[float, float] | None): Pixel values that become black and white, for example ``(0, 4095)``;
            images of 8 bits are not affected. Defaults to ``None``.

    Returns:
        np.ndarray: ``(H, W, 3)``: uint8, or float32 from 0 to 255 for images with more than 8 bits.

    Raises:
        ValueError: If the file cannot be read, for any reason, or has more than 8 bits without a range; the message
            does not name the file.
    """
    try:
        with Image.open(path) as image:
            return _rgb(image, value_range)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        raise InputError(_reason(error, path)) from error


def read_whole(image: Image.Image) -> None:
    """Read an image that was just opened to its end, which finds files that are cut off or damaged.

    The check sums of PNG files are compared; other types are decoded, JPEG to its smallest size.

    Args:
        image (Image.Image): The image; not usable afterwards.

    Raises:
        Exception: Whatever Pillow's decoders raise, from ``OSError`` to ``struct.error``.
    """
    if image.format == "PNG":
        image.verify()
    else:
        image.draft(image.mode, (1, 1))
        image.load()


def look_at(paths: Sequence[str | Path]) -> tuple[dict[str, str], list[str]]:
    """Find the files that cannot be read as images, and those with more than 8 bits, which anomalib cuts off.

    Args:
        paths (Sequence[str | Path]): The files.

    Returns:
        tuple[dict[str, str], list[str]]: Path and reason of each file that cannot be read; paths of those with more
        than 8 bits per pixel and channel, of which anomalib cuts off everything above 255.
    """
    from tqdm import tqdm  # predictions do without

    with ThreadPoolExecutor(THREADS) as pool:
        # Only shown if it takes a while.
        looked = list(tqdm(pool.map(_look, paths), "Checking images", len(paths), unit="file", delay=3))
    found = [(str(path), *result) for path, result in zip(paths, looked, strict=True)]
    return {path: reason for path, reason, _ in found if reason}, [path for path, _, deep in found if deep]


def listed(files: Mapping[str, str]) -> str:
    """The first files and their reasons, for a message.

    Examples:
        >>> listed({"a.png": "it is empty"})
        'a.png (it is empty)'
    """
    first = "; ".join(f"{path} ({reason})" for path, reason in list(files.items())[:SHOWN])
    return first + (f"; and {len(files) - SHOWN} more" if len(files) > SHOWN else "")


def _rgb(image: Image.Image, value_range: tuple[float, float] | None) -> np.ndarray:
    if image.mode in CUT_OFF:
        if value_range is None:
            msg = (
                f"it has more than 8 bits (Pillow's mode {image.mode}): set value_range to the values that are black "
                "and white, such as [0, 65535]"
            )
            raise InputError(msg)
        low, high = value_range
        values = (np.asarray(image, np.float32) - low) * (255 / (high - low))  # (H, W)
        return np.repeat(np.clip(values, 0, 255).astype(np.float32)[..., None], 3, axis=2)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without a warning
    return np.array(image.convert("RGB"))


def _look(path: str | Path) -> tuple[str, bool]:
    try:
        with Image.open(path) as image:
            deep = image.mode in CUT_OFF
            read_whole(image)
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return _reason(error, path), False
    return "", deep


def _reason(error: Exception, path: str | Path) -> str:
    return " ".join(f"{error or type(error).__name__}".replace(repr(str(path)), "it").split())
