# SPDX-License-Identifier: Apache-2.0
"""The category of an image. Batches carry paths but no categories: this is the only place that finds one by the other.

Imports neither torch nor anomalib.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

UNKNOWN = "unknown"
"""Category of an image without a path that tells it."""
UNKNOWN_PRODUCT = "unknown"
"""Decision about an image of a product that the model does not know, in tables of predictions."""


def categories_of(image_paths: Sequence[str | PurePath | None], datamodule: Any = None) -> list[str]:
    """Return the category of each image.

    The first of these that gives an answer is taken:

    1. the mapping ``category_by_path`` that the datamodule publishes (path as in the batch -> category);
    2. ``category`` of the datamodule, if it is not empty: then all of its images are of this category;
    3. the fourth part of the path from its end, as in ``<category>/<split>/<label>/<image>``, which is the
       layout of MVTec AD and of most datasets in anomalib. Of a shorter path, the topmost folder.

    Args:
        image_paths (Sequence[str | PurePath | None]): Paths of the B images of a batch.
        datamodule (Any): The datamodule that the images are from, if there is one. Defaults to ``None``.

    Returns:
        list[str]: B categories; ``"unknown"`` where there is no path to look at.

    Examples:
        >>> categories_of(["data/bottle/test/good/000.png", "cable/good/000.png", None])
        ['bottle', 'cable', 'unknown']
    """
    published = getattr(datamodule, "category_by_path", None)
    by_path: Mapping[str, str] = published if isinstance(published, Mapping) else {}
    only = getattr(datamodule, "category", None)
    return [by_path.get(str(path)) or only or _from_layout(path) for path in image_paths]


def paths_of(batch: Any) -> list[str | PurePath | None]:
    """Return the path of each image of a batch.

    Args:
        batch (Any): Batch of B images, or of frames of videos, for which it is that of the video.

    Returns:
        list[str | PurePath | None]: B paths; ``None`` where there is none.
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

    Examples:
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


def summary_label(word: str, categories: Container[str]) -> str:
    """Label of a row of a table that sums up the categories; no category has it.

    Args:
        word (str): What the row is called, if no category is called so.
        categories (Container[str]): Names of the categories, which may be anything.

    Examples:
        >>> summary_label("mean", ["bottle", "cable"])
        'mean'
        >>> summary_label("mean", ["bottle", "mean"])
        'mean of all'
    """
    while word in categories:
        word = f"{word} of all"
    return word


def category_from_path(path: str | PurePath) -> str:
    """Return the fourth part of a path from its end, as UniAD's authors do; empty if it has fewer parts.

    Examples:
        >>> category_from_path("data/bottle/test/good/000.png")
        'bottle'
    """
    parts = _parts(path)
    return parts[-4] if len(parts) >= 4 else ""


def find_category(path: str | PurePath, known: Container[str]) -> str:
    """Return the last folder of a path that has the name of a known category; empty if none has.

    Examples:
        >>> find_category("line_3/bottle/2024-05-01/000.png", {"bottle", "cable"})
        'bottle'
    """
    return next((name for name in reversed(_parts(path)[:-1]) if name in known), "")


def _from_layout(path: str | PurePath | None) -> str:
    if path is None:
        return UNKNOWN
    parts = _parts(path)
    return category_from_path(path) or (parts[0] if len(parts) > 1 else UNKNOWN)


def _parts(path: str | PurePath) -> tuple[str, ...]:
    path = path if isinstance(path, PurePath) else PurePath(path)
    return path.parts[1:] if path.anchor else path.parts


def rows_of(names: Iterable[str]) -> dict[str, list[int]]:
    """Find the places of each name.

    Not by pandas' ``groupby``, for which names have to be text; those of files and folders need not be.

    Args:
        names (Iterable[str]): A name for each row.

    Returns:
        dict[str, list[int]]: Name -> rows, in the order of the rows.

    Examples:
        >>> rows_of(["nut", "bolt", "nut"])
        {'nut': [0, 2], 'bolt': [1]}
    """
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return found
