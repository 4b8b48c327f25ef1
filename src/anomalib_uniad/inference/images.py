# SPDX-License-Identifier: Apache-2.0
"""Finding and reading images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

# The same as those of anomalib, that is, of torchvision's folders; a test compares them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class ImageFile:
    """An image to predict.

    Args:
        path (Path): Where it is.
        relative (PurePath): Its path below the folder in which it was found; the name of a file that was given itself.
        name (PurePath): The same, with the name of that folder before it if images are from several ones.
    """

    path: Path
    relative: PurePath
    name: PurePath


def find_images(sources: Sequence[Path], leave_out: Path | None = None) -> list[ImageFile]:
    """Find the images below folders, at all depths and by their extension, sorted by path.

    Args:
        sources (Sequence[Path]): Folders and files.
        leave_out (Path | None): A folder that is not searched. Defaults to ``None``.

    Returns:
        list[ImageFile]: The images of the first source, of the second, and so on; each once.

    Raises:
        FileNotFoundError: If a source is not there.
        ValueError: If a folder has no image or a file is none; the message names it.
    """
    found: dict[Path, ImageFile] = {}
    for source in sources:
        if source.is_dir():
            prefix = source.resolve().name if len(sources) > 1 else ""
            relative = sorted(path.relative_to(source) for path in source.glob("**/*") if _is_image(path, leave_out))
            images = [ImageFile(source / path, path, prefix / path) for path in relative]
        elif not source.exists():
            msg = f"There is no file or folder {source}."
            raise FileNotFoundError(msg)
        elif _is_image(source):
            images = [ImageFile(source, PurePath(source.name), PurePath(source.name))]
        else:
            images = []
        if not images:
            what = "The folder {} has no images" if source.is_dir() else "The file {} is not an image"
            msg = f"{what.format(source)}: their names end in {', '.join(EXTENSIONS)}."
            raise ValueError(msg)
        for image in images:
            found.setdefault(image.path.resolve(), image)
    return list(found.values())


def read_image(path: Path) -> np.ndarray:
    """Read an image as RGB.

    Grey, palette, CMYK and images with transparency are converted as Pillow and so anomalib do it: transparency is
    dropped. The orientation in EXIF data is not applied, as in anomalib: models are trained on pixels as they are
    stored. Of animated files it is the first frame. Of 16 bit grey, the higher eight bits are taken, as Pillow does
    for 16 bit colours; 65,535 becomes 255. (anomalib cuts values above 255 off, which leaves next to nothing.)

    Args:
        path (Path): The file.

    Returns:
        np.ndarray: ``(H, W, 3)``, uint8.

    Raises:
        ValueError: If the file cannot be read, whatever the reason; the message says which.
    """
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        msg = " ".join(f"{error or type(error).__name__}".split())
        raise ValueError(msg) from error


def _is_image(path: Path, leave_out: Path | None = None) -> bool:
    if path.suffix.lower() not in EXTENSIONS or not path.is_file():
        return False
    return leave_out is None or not path.resolve().is_relative_to(leave_out.resolve())


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        msg = "its pixels are floating point numbers, whose range is unknown; convert it to 8 or 16 bit"
        raise ValueError(msg)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)  # (H, W); in mode "I" 16 bit in 32
        if values.min() < 0 or values.max() > 65535:
            msg = f"its pixels are 32 bit numbers ({values.min()} to {values.max()}); convert it to 8 or 16 bit"
            raise ValueError(msg)
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without a warning
    return np.asarray(image.convert("RGB"))
