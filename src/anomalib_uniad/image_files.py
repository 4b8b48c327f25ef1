# SPDX-License-Identifier: Apache-2.0
"""Image files: the one rule by which they become pixels, and checks that they can be read.

Imports neither torch nor anomalib.
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from anomalib_uniad.errors import InputError

# Those of anomalib, which are torchvision's; a test compares them.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What is read whatever the name ends in; other decoders of Pillow are little tested or start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Pillow's modes with more than 8 bits, of which anomalib cuts off everything above 255.
CUT_OFF = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
SHOWN = 5  # files in a message
THREADS = 4
_ORIENTATION = 0x0112  # tag of EXIF data; 1 is upright


class Seen(NamedTuple):
    """What reading a file to its end has shown.

    Attributes:
        reason (str): Why it cannot be read; empty if it can.
        type (str): Pillow's name of the file type, such as ``"PNG"``.
        mode (str): Pillow's name of the kind of pixels, such as ``"RGB"``.
        size (tuple[int, int]): Width and height as stored.
        turned (bool): Whether EXIF data say that it is to be shown turned or mirrored, which is ignored.
        depth (str): Why it has too many bits; empty if it has not, or if there is a range for it.
    """

    reason: str = ""
    type: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    depth: str = ""

    @property
    def problem(self) -> str:
        """Why it cannot be used; empty if it can."""
        return self.reason or self.depth


def check_file(path: str | Path) -> None:
    """Refuse what is no file, before it is opened: a pipe would be waited for.

    Args:
        path (str | Path): The file.

    Raises:
        ValueError: If it is a folder, pipe, socket or device; the message does not name it.
        OSError: If it is not there, or a folder that must not be read.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        with os.scandir(path):  # which says so if it must not be read
            raise InputError("it is a folder")
    if not stat.S_ISREG(mode):
        raise InputError("it is a pipe, socket or device, not a file")


def open_image(path: str | Path) -> Image.Image:
    """Open an image file of one of the known types.

    Args:
        path (str | Path): The file.

    Returns:
        Image.Image: The image, of which the head is read; to be closed.

    Raises:
        ValueError: As :func:`check_file`.
        OSError: If it is not there, must not be read or is none of the types.
    """
    check_file(path)
    return Image.open(path, formats=FORMATS)


def read_image(path: str | Path, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Read an image as RGB: the one rule for training, test, prediction and all that compares them.

    Images of 8 bits are read as by anomalib: Pillow converts grey, palette and CMYK to RGB, transparency is dropped,
    the EXIF orientation is ignored except in TIFF files, where Pillow applies it, and animated files and those of
    several pages give the first. Of colours with 16 bits, and of grey with transparency, Pillow keeps the higher 8.

    Grey images with more than 8 bits, integers or floating point, need ``value_range``, which is mapped to 0 ... 255
    without rounding; values outside of it are cut off.

    Args:
        path (str | Path): The file.
        value_range (tuple[float, float] | None): Pixel values that become black and white, for example ``(0, 4095)``;
            images of 8 bits are not affected. Defaults to ``None``.

    Returns:
        np.ndarray: ``(H, W, 3)``: uint8, or float32 from 0 to 255 for images with more than 8 bits.

    Raises:
        ValueError: If the file cannot be read for any reason, which the message tells after the name of the file.
    """
    try:
        with open_image(path) as image:
            return to_rgb(image, value_range)
    except Exception as error:  # Pillow's decoders raise all kinds on damaged files
        raise InputError(f"{path} cannot be read: {reason_of(error, path)}.") from error


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask: what is not zero is defective; in JPEG files, whose compression blurs, values from 128 on.

    Args:
        path (str | Path): The file.

    Returns:
        np.ndarray: ``(H, W)``, bool.

    Raises:
        Exception: Whatever Pillow's decoders raise, from ``OSError`` to ``struct.error``.
    """
    with open_image(path) as mask:
        lowest = 128 if mask.format == "JPEG" else 1
        return np.asarray(mask.convert("L")) >= lowest


def check_depth(image: Image.Image, value_range: tuple[float, float] | None = None) -> None:
    """Refuse an image whose values cannot be mapped to 8 bits; its head is enough.

    Args:
        image (Image.Image): The image, just opened.
        value_range (tuple[float, float] | None): See :func:`read_image`. Defaults to ``None``.

    Raises:
        ValueError: If it has more than 8 bits and there is no range for it; the message does not name the file.
    """
    if image.mode in CUT_OFF and value_range is None:
        raise InputError(
            f"it has more than 8 bits (Pillow's mode {image.mode}): train with value_range of MultiCategory or "
            "MetaFile, the values that are black and white, such as [0, 65535]"
        )
    if image.mode not in CUT_OFF and value_range is not None and _has_deep_colors(image):
        raise InputError(
            "it has 16 bits per colour or transparency, of which Pillow keeps the higher 8, so value_range cannot be "
            "applied to it: convert it to grey or to 8 bits"
        )


def size_of(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Args:
        path (str | Path): The file.

    Returns:
        tuple[int, int]: As :func:`read_image` reads it.

    Raises:
        OSError: If it is not there or no image.
    """
    with open_image(path) as image:
        return image.height, image.width


def read_whole(image: Image.Image, value_range: tuple[float, float] | None = None) -> None:
    """Read an image that was just opened to its end, which finds files that are cut off or damaged.

    The check sums of PNG files are compared; other types are decoded, JPEG to its smallest size, and so are images with
    more than 8 bits.

    Args:
        image (Image.Image): The image; not usable afterwards.
        value_range (tuple[float, float] | None): See :func:`read_image`. Defaults to ``None``.

    Raises:
        Exception: Whatever Pillow's decoders raise, from ``OSError`` to ``struct.error``.
    """
    if image.mode in CUT_OFF and value_range is not None:
        to_rgb(image, value_range)
    elif image.format == "PNG":
        image.verify()
    else:
        image.draft(image.mode, (1, 1))
        image.load()


def look(path: str | Path, value_range: tuple[float, float] | None = None, whole: bool = True) -> Seen:
    """Read a file, to its end or only its head.

    Args:
        path (str | Path): The file.
        value_range (tuple[float, float] | None): See :func:`read_image`. Defaults to ``None``.
        whole (bool): To its end, which finds files that are cut off or damaged. Defaults to ``True``.

    Returns:
        Seen: What is known of it.
    """
    try:
        with open_image(path) as image:
            seen = describe(image, value_range)
            if whole:
                read_whole(image, value_range)
            return seen
    except Exception as error:  # decoders raise anything from OSError to struct.error
        return Seen(reason_of(error, path))


def describe(image: Image.Image, value_range: tuple[float, float] | None = None) -> Seen:
    """What the head of a file that was just opened tells.

    Args:
        image (Image.Image): The image.
        value_range (tuple[float, float] | None): See :func:`read_image`. Defaults to ``None``.
    """
    # Not asked of a file without EXIF data: Pillow would decode a whole PNG file for them. It turns TIFF files itself.
    turned = "exif" in image.info and image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    seen = Seen("", image.format or "", image.mode, image.size, turned)
    try:
        check_depth(image, value_range)
    except InputError as error:
        return seen._replace(depth=str(error))
    return seen


def look_at(
    paths: Sequence[str | Path],
    value_range: tuple[float, float] | None = None,
    whole: bool = True,
    threads: int = THREADS,
) -> dict[str, Seen]:
    """Read files, several at a time; shows its progress if it takes a while.

    Args:
        paths (Sequence[str | Path]): The files.
        value_range (tuple[float, float] | None): See :func:`read_image`. Defaults to ``None``.
        whole (bool): To their ends. Defaults to ``True``.
        threads (int): How many at a time. Defaults to ``4``.

    Returns:
        dict[str, Seen]: Path -> what is known of the file.
    """
    from tqdm import tqdm  # predictions do without

    with ThreadPoolExecutor(max(1, threads)) as pool:
        looked = pool.map(partial(look, value_range=value_range, whole=whole), paths)
        shown = tqdm(looked, "Checking images", len(paths), unit="file", delay=3)
        return dict(zip(map(str, paths), shown, strict=True))


def has_to_look(datamodule: Any) -> bool:
    """Tell whether nobody has looked at the files of a datamodule, and this process is the one that does.

    Args:
        datamodule (Any): A datamodule of anomalib.
    """
    trainer = getattr(datamodule, "trainer", None)
    return not getattr(datamodule, "images_checked", False) and (trainer is None or trainer.is_global_zero)


def check_samples(datamodule: Any, whole: bool = True) -> None:
    """Refuse files of a datamodule that cannot be read, or have more than 8 bits; called before anything long starts.

    Looks once at the images and masks of its training, validation and test set, in one process. Other files (videos,
    depth) are left out.

    Args:
        datamodule (Any): A datamodule of anomalib that is set up. Nothing is done if it has ``images_checked``, which
            is set afterwards.
        whole (bool): Read files to their ends. Defaults to ``True``.

    Raises:
        ValueError: If there are such files; the message has their names.
    """
    if not has_to_look(datamodule):
        return
    sets = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    tables: list[Any] = [table for data in sets if (table := getattr(data, "samples", None)) is not None]
    images = {path for table in tables for path in _files(table["image_path"])}
    # anomalib reads no masks of normal images; some of its tables name such that are not there.
    defective = [table[table["label_index"] != 0] for table in tables if {"mask_path", "label_index"} <= set(table)]
    masks = {path for table in defective for path in _files(table["mask_path"])}
    seen = look_at(sorted(images | masks), getattr(datamodule, "value_range", None), whole)
    # Masks may have more than 8 bits: what is not zero counts.
    bad = {path: text for path, found in seen.items() if (text := found.problem if path in images else found.reason)}
    raise_unusable(bad, len(seen))
    datamodule.images_checked = whole


def raise_unusable(files: Mapping[str, str], count: int) -> None:
    """Raise an error that names files of a data set and why they cannot be used; nothing if there are none.

    Args:
        files (Mapping[str, str]): Path -> reason.
        count (int): How many files there are in all.

    Raises:
        ValueError: If there are such files.
    """
    if files:
        raise InputError(f"{len(files)} of {count} files cannot be used: {listed(files)}.")


def listed(files: Mapping[str, str]) -> str:
    """The first files and their reasons, for a message.

    Examples:
        >>> listed({"a.png": "it is empty", "b.png": "it is truncated", "c.png": "it is empty"})
        'a.png, c.png (it is empty); b.png (it is truncated)'
    """
    paths: dict[str, list[str]] = {}
    for path, reason in list(files.items())[:SHOWN]:
        paths.setdefault(reason, []).append(path)
    first = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in paths.items())
    return first + (f"; and {len(files) - SHOWN} more" if len(files) > SHOWN else "")


def reason_of(error: Exception, path: str | Path) -> str:
    """Say why a file cannot be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows" if Path(path).stat().st_size else "it is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that are opened at most"
    if isinstance(error, OSError) and error.errno in {errno.ENOENT, errno.ELOOP} and Path(path).is_symlink():
        return f"it is a link {'in a circle' if error.errno == errno.ELOOP else 'to something that is not there'}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]  # without a number and the name
    text = " ".join(f"{error or type(error).__name__}".replace(repr(str(path)), "it").split()).rstrip(".")
    if "could not create decoder object" in text:  # of WebP
        return "it is damaged or cut off"
    return "it is cut off (truncated)" if "truncated" in text.lower() else text  # the words of decoders differ


def to_rgb(image: Image.Image, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Pixels of an image that was just opened; see :func:`read_image`, which names the file where this cannot."""
    check_depth(image, value_range)
    if value_range is not None and image.mode in CUT_OFF:
        low, high = value_range
        values = (np.clip(_values(image), low, high) - low) * (255 / (high - low))  # (H, W)
        if np.isnan(values).any():
            raise InputError("it has pixels that are not a number")
        return np.repeat(values.astype(np.float32)[..., None], 3, axis=2)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without a warning
    return np.array(image.convert("RGB"))


def _values(image: Image.Image) -> np.ndarray:
    """Values ``(H, W)`` as they are in the file."""
    raw_mode, maximum = _raw_mode(image)
    values = np.asarray(image)
    if raw_mode == "I;32N":  # Pillow has no unsigned type of 32 bits
        values = values.view(np.uint32)
    values = values.astype(np.float64 if image.mode == "I" else np.float32)
    return values * (maximum / 65535) if maximum else values  # what Pillow has stretched to 16 bits


def _raw_mode(image: Image.Image) -> tuple[str, int]:
    """How the file has its pixels, such as "RGB;16B", and of PPM and PGM files the largest value; before loading."""
    for codec, _, _, arguments in getattr(image, "tile", ())[:1]:
        if isinstance(arguments, str):
            return arguments, 0
        if arguments:
            return str(arguments[0]), arguments[1] if codec in {"ppm", "ppm_plain"} else 0
    return "", 0


def _has_deep_colors(image: Image.Image) -> bool:
    raw_mode, maximum = _raw_mode(image)
    return ";16" in raw_mode or maximum > 255


def _files(paths: Iterable[Any]) -> list[str]:
    """Paths of images, from a column of a table: a path, a list of several or nothing in each row."""
    flat = [path for item in paths for path in (item if isinstance(item, list | tuple) else [item])]
    names = [str(path) for path in flat if isinstance(path, str | Path)]
    return [name for name in names if name.lower().endswith(EXTENSIONS)]
