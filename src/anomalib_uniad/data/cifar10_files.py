# SPDX-License-Identifier: Apache-2.0
"""The files of CIFAR-10, read by torchvision."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes, in the order of their labels."""


class _Unverified(datasets.CIFAR10):
    """torchvision's loader without checksums; that the files are there is still looked at."""

    train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]
    test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]
    meta = {**datasets.CIFAR10.meta, "md5": None}


def _loader(verify: bool) -> type[datasets.CIFAR10]:
    return datasets.CIFAR10 if verify else _Unverified


def check_files(root: Path, verify: bool) -> list[str]:
    """Look for the files.

    Args:
        root (Path): Folder that has, or gets, ``cifar-10-batches-py`` in it.
        verify (bool): Compare the files with torchvision's checksums.

    Returns:
        list[str]: Names of those that are missing.

    Raises:
        ValueError: If the root is a file, or one has another content than torchvision expects: a download would
            overwrite it.
    """
    if root.exists() and not root.is_dir():
        msg = f"The root {root} is a file: set `root` to the folder that has {datasets.CIFAR10.base_folder} in it."
        raise ValueError(msg)
    loader = _loader(verify)
    folder = root / loader.base_folder
    files: list[list[Any]] = [*loader.train_list, *loader.test_list, [loader.meta["filename"], loader.meta["md5"]]]
    there = [(name, md5) for name, md5 in files if (folder / name).is_file()]
    wrong = [name for name, md5 in there if not check_integrity(folder / name, md5)]
    if wrong:
        msg = (
            f"{', '.join(wrong)} in {folder} is not as torchvision knows it: damaged, or a part of the data set. Set "
            "`verify` to false to read it as it is, or move the folder away to have it downloaded again."
        )
        raise ValueError(msg)
    return sorted({name for name, _ in files} - {name for name, _ in there})


def how_to_get(root: Path, missing: Sequence[str]) -> str:
    """Say which files are missing, and which to put where.

    Args:
        root (Path): Folder that is to have ``cifar-10-batches-py`` in it.
        missing (Sequence[str]): Names of the missing files.
    """
    loader = datasets.CIFAR10
    return (
        f"CIFAR-10 is not complete in {root / loader.base_folder}: there is no {', '.join(missing)}. Download "
        f"{loader.url} and unpack it in {root}, so that it has the folder {loader.base_folder}."
    )


def read(root: Path, train: bool, verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read one split with torchvision's loader.

    Args:
        root (Path): Folder that has ``cifar-10-batches-py`` in it.
        train (bool): The training images, or the test images.
        verify (bool): Compare the files with torchvision's checksums.

    Returns:
        tuple[np.ndarray, np.ndarray]: Images (n, 32, 32, 3) and labels (n,).

    Raises:
        ValueError: If the files have another content than those of CIFAR-10.
    """
    folder = root / datasets.CIFAR10.base_folder
    try:
        source = _loader(verify)(root, train=train)
        labels = np.asarray(source.targets, dtype=int)
        names = tuple(source.classes)
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        msg = f"The {'training' if train else 'test'} files in {folder} cannot be read as CIFAR-10: {error!r}."
        raise ValueError(msg) from error
    if names != CLASSES:
        msg = f"The classes in {folder} are {', '.join(names)}; those of CIFAR-10 are {', '.join(CLASSES)}."
        raise ValueError(msg)
    images = np.ascontiguousarray(source.data)
    known = labels.shape == (len(images),) and bool(np.isin(labels, np.arange(len(CLASSES))).all())
    if not known or images.dtype != np.uint8:
        msg = f"The files in {folder} need a label from 0 to 9 for each of their {len(images)} images of bytes."
        raise ValueError(msg)
    return images, labels


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image, if it is not there yet.

    Args:
        path (Path): File; its folder is created.
        pixels (np.ndarray): Image (h, w, 3).

    Raises:
        FileExistsError: If there is another image, or something else, at the path.
        OSError: If it cannot be written.
    """
    if path.exists():
        try:
            same = np.array_equal(np.asarray(Image.open(path)), pixels)
        except (UnidentifiedImageError, OSError):
            same = False
        if not same:
            msg = f"{path} is not the image of CIFAR-10 that it is to show in heatmaps. Move its folder away."
            raise FileExistsError(msg)
        return
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(part, "PNG")
        part.replace(path)
    except OSError as error:
        msg = (
            f"Heatmaps need {path}, which cannot be written: {error}. Turn them off (--model.visualizer false), or "
            "copy the data set to a folder that can be written to."
        )
        raise OSError(msg) from error
