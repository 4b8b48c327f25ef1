# SPDX-License-Identifier: Apache-2.0
"""From the path of an image to its category.

Batches carry paths but no categories, so whoever needs a category asks here, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
"""Category of an image of which nothing tells the category."""


def categories_of(image_paths: Sequence[str | Path | None], datamodule: Any = None) -> list[str]:
    """Return the category of each image.

    The first of these that gives an answer is taken:

    1. the mapping ``category_by_path`` that the datamodule publishes (path as in the batch -> category);
    2. ``category`` of the datamodule, if it is not empty: then all of its images are of this category;
    3. the fourth part of the path from its end, as in ``<category>/<split>/<label>/<image>``, which is the
       layout of MVTec AD and of most datasets in anomalib. Of a shorter path, the topmost folder.

    Args:
        image_paths (Sequence[str | Path | None]): Paths of the B images of a batch.
        datamodule (Any): The datamodule that the images are from, if there is one. Defaults to ``None``.

    Returns:
        list[str]: B categories; ``"unknown"`` where there is no path to look at.

    Example:
        >>> categories_of(["data/bottle/test/good/000.png", "cable/good/000.png", None])
        ['bottle', 'cable', 'unknown']
    """
    published = getattr(datamodule, "category_by_path", None)
    by_path: Mapping[str, str] = published if isinstance(published, Mapping) else {}
    only = getattr(datamodule, "category", None)
    return [by_path.get(str(path)) or only or _from_layout(path) for path in image_paths]


def paths_of(batch: Any) -> list[str | Path | None]:
    """Return the path of each image of a batch.

    Args:
        batch (Any): Batch of B images, or of frames of videos, for which it is that of the video.

    Returns:
        list[str | Path | None]: B paths; ``None`` where there is none.
    """
    paths = getattr(batch, "image_path", None) or getattr(batch, "video_path", None)
    return list(paths) if paths else [None] * len(batch)


def known_categories(datamodule: Any) -> list[str]:
    """Return the categories that a datamodule has, in the order in which they are reported.

    Args:
        datamodule (Any): A datamodule with an attribute ``categories``, ``category_by_path`` or ``category``;
            the first that is there and not empty counts.

    Returns:
        list[str]: The categories; empty if the datamodule does not tell.

    Example:
        >>> from types import SimpleNamespace
        >>> known_categories(SimpleNamespace(category="bottle"))
        ['bottle']
        >>> known_categories(None)
        []
    """
    if categories := getattr(datamodule, "categories", None):
        return list(categories)
    published = getattr(datamodule, "category_by_path", None)
    if isinstance(published, Mapping) and published:
        return sorted(set(published.values()))
    only = getattr(datamodule, "category", None)
    return [only] if only else []


def _from_layout(path: str | Path | None) -> str:
    if path is None:
        return UNKNOWN
    path = Path(path)
    parts = path.parts[1:] if path.anchor else path.parts
    if len(parts) >= 4:
        return parts[-4]
    return parts[0] if len(parts) > 1 else UNKNOWN
