# SPDX-License-Identifier: Apache-2.0
"""Checks that image files can be read to their end, with as little decoding as possible."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

# Pillow's modes with more than 8 bits, of which anomalib cuts off everything above 255.
CUT_OFF = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
SHOWN = 5  # files in a message
THREADS = 4


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


def _look(path: str | Path) -> tuple[str, bool]:
    try:
        with Image.open(path) as image:
            deep = image.mode in CUT_OFF
            read_whole(image)
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return " ".join(f"{error or type(error).__name__}".replace(repr(str(path)), "it").split()), False
    return "", deep
