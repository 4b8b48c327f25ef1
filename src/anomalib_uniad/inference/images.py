# SPDX-License-Identifier: Apache-2.0
"""Finds and resizes images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from anomalib_uniad.errors import DiskError, InputError, MissingFileError
from anomalib_uniad.files import real_path
from anomalib_uniad.image_files import EXTENSIONS

TABLE, REGIONS, HEATMAPS, MASKS = "predictions.csv", "predictions.jsonl", "heatmaps", "masks"  # files of a prediction


@dataclass(frozen=True)
class ImageFile:
    """An image to predict.

    Args:
        path (Path): Its path.
        name (PurePath): Its path below the folder in which it was found, preceded by the name of that folder if there
            are several; only the file name for a file that was given itself.
    """

    path: Path
    name: PurePath


def find_images(sources: Sequence[Path], leave_out: Sequence[Path] = ()) -> list[ImageFile]:
    """Find the images below folders, at all depths and by their extension, sorted by path.

    Links are followed. Heatmaps and masks beside a table of predictions are left out, and so are hidden files and
    folders. What has the name of an image and is none, links that lead nowhere and folders that must not be read are
    among what is found, so that whoever reads the images tells of them.

    Args:
        sources (Sequence[Path]): Folders and files.
        leave_out (Sequence[Path]): Folders that are not searched. Defaults to ``()``.

    Returns:
        list[ImageFile]: The images of the first source, then of the second, and so on, each image once.

    Raises:
        FileNotFoundError: If a source is not there.
        OSError: If a source is a folder that must not be read.
        ValueError: If a folder has no image or a file is not an image.
    """
    prefixes = prefixes_of([source for source in sources if source.is_dir()])
    found: list[ImageFile] = []
    earlier: set[str] = set()
    for source in sources:
        if source.is_dir():
            check_readable(source)
            prefix = prefixes[real_path(source)] if len(sources) > 1 else PurePath()
            images = [ImageFile(source / path, prefix / path) for path in sorted(search(source, leave_out))]
        elif not source.exists():
            raise MissingFileError(f"There is no file or folder {source}.")
        elif is_image(source):
            images = [ImageFile(source, PurePath(source.name))]
        else:
            images = []
        if not images:
            what = "The folder {} has no images" if source.is_dir() else "The file {} is not an image"
            raise InputError(f"{what.format(source)}: their names end in {', '.join(EXTENSIONS)}.")
        resolved = {image: os.path.realpath(image.path) for image in images}
        found += [image for image in images if resolved[image] not in earlier]
        earlier |= set(resolved.values())
    return found


def prefixes_of(sources: Sequence[Path]) -> dict[Path, PurePath]:
    """Resolved folder -> the shortest end of its path that is different for all of them."""
    folders = list(dict.fromkeys(map(real_path, sources)))
    parts = {folder: folder.relative_to(folder.anchor).parts for folder in folders}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        prefixes = {folder: PurePath(*names[-count:]) for folder, names in parts.items()}
        if len(set(prefixes.values())) == len(folders):
            return prefixes
    return {folder: PurePath(*names) for folder, names in parts.items()}


def search(folder: Path, leave_out: Sequence[Path] = ()) -> Iterator[Path]:
    """Relative paths of the images of a folder; see :func:`find_images`."""
    # Links may lead back, or to a folder that this one is in.
    visited = {os.path.realpath(path) for path in leave_out} | {str(path) for path in real_path(folder).parents}
    unreadable: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename)), followlinks=True)
    for name, folders, files in walk:
        here = Path(name)
        visited.add(os.path.realpath(here))
        if TABLE in files:
            folders[:] = [name for name in folders if name not in {HEATMAPS, MASKS}]
        folders[:] = [name for name in folders if name[0] != "." and os.path.realpath(here / name) not in visited]
        yield from ((here / name).relative_to(folder) for name in files if name[0] != "." and is_image(here / name))
    yield from (path.relative_to(folder) for path in unreadable)


def check_readable(folder: Path) -> None:
    """Refuse a folder that must not be read.

    Args:
        folder (Path): The folder.

    Raises:
        OSError: If it must not be read.
    """
    try:
        with os.scandir(folder):
            pass
    except OSError as error:
        raise DiskError(f"The folder {folder} cannot be read: {error.strerror}; change its permissions.") from error


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as UniAD does inside files that take any size: bilinear with antialiasing.

    Args:
        image (np.ndarray): ``(H, W, 3)``, from 0 to 255.
        size (tuple[int, int]): New height and width.

    Returns:
        np.ndarray: ``(*size, 3)``, float32, from 0 to 255, not rounded.
    """
    channels = np.moveaxis(image.astype(np.float32), -1, 0)
    if image.shape[:2] != size:
        to = (size[1], size[0])
        resized = [Image.fromarray(part).resize(to, Image.Resampling.BILINEAR) for part in channels]
        channels = np.stack([np.asarray(part) for part in resized])
    return np.moveaxis(channels, 0, -1)


def is_image(path: Path) -> bool:
    """Whether something other than a folder has the name of an image, or is a link without suffix that leads nowhere.

    The latter may have been a folder of images.
    """
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS:
        return os.path.lexists(path) and not path.is_dir()
    return not suffix and path.is_symlink() and not path.exists()
