# SPDX-License-Identifier: Apache-2.0
"""The files of one feature cache: how they are written, checked, mapped and removed."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

META = "meta.json"
KIND = "anomalib-uniad features"
FILES = frozenset({META, "features.npy", "labels.npy", "masks.npy"})


class CacheWriter:
    """Writes one cache into a folder.

    Args:
        folder (Path): An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def start(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Begin an array; all of ``shape`` has to be appended to it later."""
        file = (self.folder / f"{name}.npy").open("wb")
        self._files[name] = file
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._arrays[name] = {"shape": list(shape), "dtype": dtype, "bytes": size}

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next rows. Plain writes: a full disk kills a process that writes to mapped memory."""
        array = np.ascontiguousarray(array, dtype=self._arrays[name]["dtype"])
        self._files[name].write(array.reshape(-1).view(np.uint8).data)

    def finish(self, meta: dict[str, Any]) -> None:
        """Bring everything to the disk, the description last."""
        for file in self._files.values():
            _synchronise(file)
        self.close()
        with (self.folder / META).open("wb") as file:
            content = {"kind": KIND, **meta, "created": time.time(), "arrays": self._arrays}
            file.write(json.dumps(content, indent=2).encode())
            _synchronise(file)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the description of a cache; empty if there is none that can be read."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get("kind") == KIND else {}


def map_arrays(folder: Path, key: str) -> dict[str, np.ndarray]:
    """Map the arrays of a cache into memory.

    Args:
        folder (Path): Its folder.
        key (str): Its name.

    Returns:
        dict[str, np.ndarray]: Name -> array.

    Raises:
        ValueError: If the folder is not that of a complete cache.
    """
    meta = read_meta(folder)
    if meta.get("key") != key:
        msg = f"{META} is missing, cannot be read or belongs to another cache."
        raise ValueError(msg)
    arrays = {}
    try:
        for name, wanted in meta["arrays"].items():
            file = folder / f"{name}.npy"
            size = file.stat().st_size
            # Private pages: torch warns about arrays that cannot be written to, and nothing goes back to the file.
            array = np.load(file, mmap_mode="c") if size == wanted["bytes"] else None
            if array is None or list(array.shape) != wanted["shape"] or array.dtype.name != wanted["dtype"]:
                msg = f"{file.name} has {size} bytes; {META} says {wanted}."
                raise ValueError(msg)
            arrays[name] = array
        if not {"features", "labels"} <= arrays.keys():
            msg = f"{META} lists only {sorted(arrays)}."
            raise ValueError(msg)
    # Other errors of the system, for example too many open files, say nothing about the cache.
    except (FileNotFoundError, EOFError, KeyError, TypeError, AttributeError) as error:
        msg = f"{type(error).__name__}: {error}"
        raise ValueError(msg) from error
    return arrays


def size_of(folder: Path) -> int:
    """Bytes of the files of a cache."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name in FILES)


def has_only_our_files(folder: Path) -> bool:
    """Whether this is a real folder, no link, with nothing in it that is not a part of a cache."""
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and all(path.name in FILES and path.is_file() for path in folder.iterdir())
    )


def remove(folder: Path) -> int:
    """Delete the files of a cache, and the folder if it is empty then.

    Returns:
        int: Bytes that were freed.
    """
    freed = 0
    # The description first: what is left if this is interrupted is no cache.
    for path in sorted(folder.iterdir(), key=lambda path: path.name != META):
        if path.name in FILES and path.is_file():
            freed += path.lstat().st_size
            path.unlink()
    with contextlib.suppress(OSError):  # somebody's files are in it
        folder.rmdir()
    return freed


def _synchronise(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
