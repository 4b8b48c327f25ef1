# SPDX-License-Identifier: Apache-2.0
"""Pictures of runs, small enough to be part of a page."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from anomalib_uniad.files import file_names

from .decisions import NORMAL, Decisions
from .runs import Run

# A page stays below some MB: all its curves, and all its heatmaps (base64 adds a third).
CURVES_BYTES, HEATMAPS_BYTES = 2_500_000, 3_500_000
SUFFIXES = {".png", ".jpg", ".jpeg"}
# Width in pixels and, for JPEG, quality: the first that fits is taken.
CURVE_SIZES = ((1200, 0), (900, 0), (700, 0), (500, 0))
HEATMAP_SIZES = ((1000, 85), (800, 80), (640, 75), (480, 70), (320, 60))

Key = tuple[str, ...]


def find_curves(run: Run, category: str) -> Path | None:
    """Find the picture of a category's curves.

    Args:
        run (Run): The run.
        category (str): Name of the category.

    Returns:
        Path | None: The picture, ``None`` if there is none.
    """
    folder = run.beside("curves")
    path = folder / f"{file_names(run.categories).get(category, '')}.png" if folder else None
    return path if path and path.is_file() else None


def find_heatmaps(run: Run, category: str) -> dict[Key, Path]:
    """Find the heatmaps of a category.

    Args:
        run (Run): The run; its heatmaps are in ``images/<category>/...``, or in ``images`` if it has one category.
        category (str): Name of the category.

    Returns:
        dict[Key, Path]: Heatmaps by the path of the image in the category, without a leading ``test``: the same image
            has the same in all runs.
    """
    images = run.file.parent / "images"
    below = images / category
    if not (_is_name(category) and below.is_dir()):
        if run.categories != [category] or category not in run.categories:
            return {}
        below = images
    found = {}
    for path in sorted(below.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            parts = path.relative_to(below).with_suffix("").parts
            found[parts[1:] if parts[0] == "test" and len(parts) > 1 else parts] = path
    return found


def choose(
    heatmaps: Sequence[Mapping[Key, Path]], count: int, decisions: Iterable[Mapping[str, Decisions]], category: str
) -> list[Key]:
    """Choose images of which all runs have heatmaps.

    Args:
        heatmaps (Sequence[Mapping[Key, Path]]): Heatmaps of each run that has any.
        count (int): How many are wanted.
        decisions (Iterable[Mapping[str, Decisions]]): Decisions of runs, which tell the defective images.
        category (str): Name of the category.

    Returns:
        list[Key]: At most ``count`` images, defective ones first, each from another folder as long as there are some.
    """
    labels = {}
    for found in decisions:
        labels.update(found[category].labels if category in found else {})
    folders: dict[tuple[bool, Key], list[Key]] = {}
    for key in sorted(set.intersection(*map(set, heatmaps))) if heatmaps else []:
        folder = key[-2] if len(key) > 1 else ""
        defective = labels.get((folder, key[-1]), folder.lower() not in NORMAL | {"ok"})
        folders.setdefault((not defective, key[:-1]), []).append(key)
    # First the first image of each folder, then the second ones; all defective ones before the first normal one.
    turns = [(normal, turn, key) for (normal, _), keys in folders.items() for turn, key in enumerate(keys)]
    return [key for _, _, key in sorted(turns)[:count]]


def png(path: Path, limit: int) -> str:
    """Turn a picture with lines and text into a data URI.

    Args:
        path (Path): The picture.
        limit (int): Bytes that it may have.

    Returns:
        str: The URI of a PNG with 256 colours, as wide as the limit allows; empty if the file is damaged.
    """
    return _uri(path, limit, CURVE_SIZES, "png")


def jpeg(path: Path, limit: int) -> str:
    """Turn a photo into a data URI.

    Args:
        path (Path): The photo.
        limit (int): Bytes that it may have.

    Returns:
        str: The URI of a JPEG, as large as the limit allows; empty if the file is damaged.
    """
    return _uri(path, limit, HEATMAP_SIZES, "jpeg")


def _uri(path: Path, limit: int, sizes: Sequence[tuple[int, int]], kind: str) -> str:
    data = b""
    try:
        with Image.open(path) as image:
            picture = _opaque(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what pillow raises for damaged files
        return ""
    for width, quality in sizes:
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


def _opaque(image: Image.Image) -> Image.Image:
    """Put a picture with transparent parts on white."""
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _is_name(category: str) -> bool:
    """Whether a category can be the name of a file: not a path that leads elsewhere."""
    return category not in {"", ".", ".."} and "/" not in category and "\0" not in category
