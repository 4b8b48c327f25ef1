# SPDX-License-Identifier: Apache-2.0
"""The files of CIFAR-10, as torchvision knows them, read without running what is in them."""

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
    loader = datasets.CIFAR10
    folder = root / loader.base_folder
    files: list[list[Any]] = [*loader.train_list, *loader.test_list, [loader.meta["filename"], loader.meta["md5"]]]
    there = [(name, md5) for name, md5 in files if (folder / name).is_file()]
    wrong = [name for name, md5 in there if verify and not check_integrity(folder / name, md5)]
    if wrong:
        msg = (
            f"{', '.join(wrong)} in {folder} is not as torchvision knows it: damaged, a part of the data set, or "
            "something else. Move the folder away to have it downloaded again, or, if you know where it comes from and "
            "trust that, set `verify` to false to read it as it is."
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
    """Read one split.

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
    batches = datasets.CIFAR10.train_list if train else datasets.CIFAR10.test_list
    parts = [_read_batch(folder / name, md5 if verify else None) for name, md5 in batches]
    meta = datasets.CIFAR10.meta
    names = _load(folder / meta["filename"], meta["md5"] if verify else None, meta["key"])[0]
    if names != list(CLASSES):
        msg = f"The classes in {folder / meta['filename']} are {names!r}; those of CIFAR-10 are {list(CLASSES)}."
        raise ValueError(msg)
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels


def _read_batch(file: Path, md5: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, 3, 32, 32) and labels (n,)."""
    pixels, given = _load(file, md5, "data", "labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        msg = f"The data in {file} are no images of CIFAR-10: they have to be an array (n, 3072) of bytes."
        raise ValueError(msg)
    try:
        labels = np.asarray(given)
    except ValueError:  # a list of lists of different lengths
        labels = np.asarray(None)
    known = labels.shape == pixels.shape[:1] and (labels.dtype.kind in "iu" or not len(labels))
    if not known or not np.isin(labels, np.arange(len(CLASSES))).all():
        msg = f"The labels in {file} have to be whole numbers from 0 to 9, one for each of its {len(pixels)} images."
        raise ValueError(msg)
    return pixels.reshape(-1, 3, 32, 32), labels.astype(int)


def _load(file: Path, md5: str | None, *keys: str) -> list[Any]:
    """Read values of the dictionary in a file, which is not trusted."""
    if not check_integrity(file, md5):
        msg = f"{file} is not there." if md5 is None else f"{file} is not there, or not as torchvision knows it."
        raise ValueError(msg)
    try:
        with file.open("rb") as stream:
            content = _Unpickler(stream, encoding="latin1").load()
        return [content[key] for key in keys]
    except Exception as error:  # damaged pickles raise anything
        msg = f"{file} cannot be read as CIFAR-10: {error!r}."
        raise ValueError(msg) from error


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, *_rest: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _to_bytes(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")  # numpy's choice; others would have Python look for a module


_numpy_functions = {
    "_reconstruct": np.empty(0).__reduce__()[0],  # in a module whose name depends on the version of numpy
    "scalar": np.int64(0).__reduce__()[0],
    "_frombuffer": _from_buffer,
}
_SAFE = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _to_bytes,
    **{
        (f"numpy.{core}.{module}", name): _numpy_functions[name]
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
}


class _Unpickler(pickle.Unpickler):
    """Reads arrays, text, numbers and containers of them, and refuses whatever else a pickle can make or call."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up what the pickle names; only what arrays are made of is there."""
        if (module, name) not in _SAFE:
            msg = f"it has {module}.{name}, which has no place in a data set and is not loaded"
            raise pickle.UnpicklingError(msg)
        return _SAFE[module, name]


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
