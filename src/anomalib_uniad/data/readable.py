# SPDX-License-Identifier: Apache-2.0
"""Whether image files can be read to their end, without decoding more than that takes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

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


def check_readable(paths: Sequence[str | Path], advice: str) -> None:
    """Refuse files that cannot be read as images.

    Args:
        paths (Sequence[str | Path]): The files.
        advice (str): What to do, the end of the message.

    Raises:
        ValueError: If there are such files; the message names the first of them.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        # Only shown if it takes a while.
        reasons = list(tqdm(pool.map(_why_not, paths), "Checking images", len(paths), unit="file", delay=3))
    bad = [f"{path} ({reason})" for path, reason in zip(paths, reasons, strict=True) if reason]
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        msg = f"{len(bad)} of {len(paths)} images cannot be read: {'; '.join(bad[:SHOWN])}{more}. {advice}"
        raise ValueError(msg)


def _why_not(path: str | Path) -> str:
    try:
        with Image.open(path) as image:
            read_whole(image)
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return " ".join(f"{error or type(error).__name__}".replace(str(path), "it").split())
    return ""
