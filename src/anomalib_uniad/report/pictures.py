# SPDX-License-Identifier: Apache-2.0
"""Curves and heatmaps of runs, small enough to be part of a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal

from PIL import Image

from anomalib_uniad.files import file_names, is_there
from anomalib_uniad.image_files import open_image

from .decisions import NORMAL
from .runs import Run

# A page stays below some MB: all its curves, all its heatmaps, what went wrong (base64 adds a third).
CURVES_BYTES, HEATMAPS_BYTES, FAILURES_BYTES = 2_400_000, 2_600_000, 2_200_000
# Width in pixels and, for JPEG, quality: the first that fits is taken.
SIZES = {
    "png": ((1200, 0), (900, 0), (700, 0), (500, 0)),
    "jpeg": ((1000, 85), (800, 80), (640, 75), (480, 70), (320, 60)),
}

Key = tuple[str, ...]  # path of an image in its category, without suffix


def find_curves(run: Run, category: str) -> Path | None:
    """Find the picture of a category's curves."""
    folder = run.beside("curves")
    path = folder / f"{file_names(run.categories).get(category, '')}.png" if folder else None
    return path if path and is_there(path, [run.file.parent]) else None


def find_heatmaps(run: Run, category: str) -> dict[Key, Path]:
    """Find the heatmaps of a category, in ``images/<category>``, or in ``images`` if the run has one category.

    The same image has the same key in all runs: its path in the category, without a leading ``test``.
    """
    images = run.file.parent / "images"
    below = images / category
    is_name = category not in {"", ".", ".."} and "/" not in category and "\0" not in category
    if not (is_name and below.is_dir()):
        if run.categories != [category]:
            return {}
        below = images
    found = {}
    for path in sorted(below.rglob("*")):
        if path.suffix.lower() in {".png", ".jpg", ".jpeg"} and is_there(path, [run.file.parent]):
            key = path.relative_to(below).with_suffix("").parts
            found[key[1:] if key[0] == "test" and len(key) > 1 else key] = path
    return found


def picture_of(folder: Path, path: str, category: str, only: bool, images: Path | None = None) -> Path | None:
    """The picture of an image in the folder of a run or, without one, the image itself, if it is there.

    Whoever made the table may name any file: one is taken from this folder, the working directory, and the folder of
    images that is given; none that is hidden.

    Args:
        folder (Path): The folder.
        path (str): Of the image, as in predictions.csv.
        category (str): Of the image.
        only (bool): Whether the run has no other category.
        images (Path | None): Folder of the images. Defaults to ``None``.
    """
    image = PurePath(path)
    parts = image.parts[1:] if image.anchor else image.parts
    # The visualizer keeps an end of the path; without the category in it, it may be that of another product.
    ends = [parts[start:] for start in range(len(parts) - 1)]
    found = [folder / "images" / PurePath(*end) for end in ends if only or category in end[:-1]]
    folders = [folder, Path.cwd(), *([images] if images is not None else [])]
    return next((picture for picture in (*found, Path(path)) if is_there(picture, folders)), None)


def choose(heatmaps: Sequence[Mapping[Key, Path]], count: int, labels: Mapping[tuple[str, str], bool]) -> list[Key]:
    """Choose images of which all runs have heatmaps: defective ones first, from as many folders as possible.

    Labels are by (name of the folder, name without suffix); without one, the name of the folder decides.
    """
    folders: dict[tuple[bool, Key], list[Key]] = {}
    for key in sorted(set.intersection(*map(set, heatmaps))) if heatmaps else []:
        folder = key[-2] if len(key) > 1 else ""
        defective = labels.get((folder, key[-1]), folder.lower() not in NORMAL | {"ok"})
        folders.setdefault((not defective, key[:-1]), []).append(key)
    # First the first image of each folder, then the second ones; all defective ones before the first normal one.
    turns = [(normal, turn, key) for (normal, _), keys in folders.items() for turn, key in enumerate(keys)]
    return [key for _, _, key in sorted(turns)[:count]]


def data_uri(path: Path | None, kind: Literal["png", "jpeg"], limit: int) -> str:
    """Turn a picture into a data URI of some bytes at most, as wide as they allow; empty without a whole picture.

    PNG with 256 colours is for lines and text, JPEG for photos.
    """
    picture = None if path is None else read_picture(path)
    return "" if picture is None else encode(picture, kind, limit)


def read_picture(path: Path) -> Image.Image | None:
    """Read a picture, on white where it is transparent; ``None`` if it is not a whole picture."""
    try:
        with open_image(path) as image:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    except Exception:  # Pillow's decoders raise all kinds on damaged files
        return None


def encode(picture: Image.Image, kind: Literal["png", "jpeg"], limit: int) -> str:
    """Write a picture as :func:`data_uri` does."""
    data = b""
    for width, quality in SIZES[kind]:
        if data and width >= picture.width:
            continue  # as before, nothing to gain
        small = picture
        if picture.width > width:
            height = max(1, round(picture.height * width / picture.width))
            small = picture.resize((width, height), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        if kind == "png":
            small.quantize(256, Image.Quantize.FASTOCTREE).save(stream, "PNG", optimize=True)
        else:
            small.save(stream, "JPEG", quality=quality, optimize=True)
        data = stream.getvalue()
        if len(data) <= limit:
            break
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
