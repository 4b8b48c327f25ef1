# SPDX-License-Identifier: Apache-2.0
"""Feature caches on disk: one folder each, complete or not there.

Nothing here imports torch, so that listing and clearing are quick.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from anomalib_uniad.errors import DiskError, InputError
from anomalib_uniad.files import flush_to_disk

logger = logging.getLogger(__name__)

META = "meta.json"
KIND = "anomalib-uniad features"
REQUIRED = ("features", "labels")
FILES = frozenset({META, "features.npy", "labels.npy", "masks.npy"})
RESERVE = 256 * 2**20  # bytes that are left free on the disk
LIMIT = "ANOMALIB_UNIAD_CACHE_GB"  # variable of the environment: gigabytes of all caches in a directory
LIMIT_GB = 20.0  # without it
_KEY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.([0-9a-f]{32})\.[^.]+\.partial")


class MemoryWriter:
    """Keeps arrays in memory: ``arrays``, name -> array."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._written: dict[str, int] = {}

    def start(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Begin an array; all of ``shape`` has to be appended to it later."""
        self.arrays[name] = np.empty(shape, dtype)
        self._written[name] = 0

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next rows."""
        start = self._written[name]
        self._written[name] = start + len(array)
        self.arrays[name][start : start + len(array)] = array


class CacheWriter:
    """Writes arrays into files of an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._arrays: dict[str, dict[str, Any]] = {}

    def start(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Begin an array; all of ``shape`` has to be appended to it later."""
        file = self._files[name] = (self.folder / f"{name}.npy").open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        self._arrays[name] = {"shape": list(shape), "dtype": dtype}

    def append(self, name: str, array: np.ndarray) -> None:
        """Write the next rows. Plain writes: a full disk kills a process that writes to mapped memory."""
        array = np.ascontiguousarray(array, dtype=self._arrays[name]["dtype"])
        self._files[name].write(array.reshape(-1).view(np.uint8).data)

    def finish(self, meta: dict[str, Any]) -> None:
        """Bring everything to the disk, the description last; plain data with the ``key`` of the cache."""
        self.close()
        content = {"kind": KIND, **meta, "created": time.time(), "arrays": self._arrays}
        for name in self._files:
            flush_to_disk(self.folder / f"{name}.npy")
        (self.folder / META).write_text(json.dumps(content, indent=2), encoding="utf-8")
        for path in (self.folder / META, self.folder):
            flush_to_disk(path)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


@dataclass(frozen=True)
class CacheEntry:
    """One cache on disk.

    Attributes:
        key (str): Its name.
        path (Path): Its folder.
        meta (dict[str, Any]): What it was made of; empty if that cannot be read.
        size (int): Bytes on disk.
        last_used (float): When it was opened last, in seconds since 1970.
    """

    key: str
    path: Path
    meta: dict[str, Any]
    size: int
    last_used: float


class FeatureStore:
    """The caches in one directory. Other files there are left alone.

    Args:
        directory (Path | str | None): The directory; ``None`` is ``anomalib-uniad/features`` in ``$XDG_CACHE_HOME`` or
            ``~/.cache``. Defaults to ``None``.

    Examples:
        >>> FeatureStore("/not/there").entries()
        []
    """

    def __init__(self, directory: Path | str | None = None) -> None:
        if directory is None:
            directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "anomalib-uniad", "features")
        self.directory = Path(directory).expanduser()

    def entries(self) -> list[CacheEntry]:
        """List the caches, also damaged ones; the one that was used last comes first."""
        found = []
        for path in self._folders():
            if _KEY.fullmatch(path.name):
                marker = path / META
                used = (marker if marker.is_file() else path).stat().st_mtime
                size = sum(file.stat().st_size for file in path.iterdir())
                found.append(CacheEntry(path.name, path, _read_meta(path), size, used))
        return sorted(found, key=lambda entry: -entry.last_used)

    def unfinished(self) -> list[tuple[str, Path]]:
        """List key and folder of builds that are running or were killed."""
        matches = [(_UNFINISHED.fullmatch(path.name), path) for path in self._folders()]
        return [(match[1], path) for match, path in matches if match]

    def has(self, key: str) -> bool:
        """Whether there is a cache of this name, damaged or not."""
        return (self.directory / key).is_dir()

    def open(self, key: str, warn: bool = True) -> dict[str, np.ndarray] | None:
        """Map a cache into memory.

        Args:
            key (str): Its name.
            warn (bool): Warn of a damaged one. Defaults to ``True``.

        Returns:
            dict[str, np.ndarray] | None: Name -> array; None if there is no such cache or it is damaged.
        """
        folder = self.directory / key
        if not folder.exists():
            return None
        try:
            arrays = _map_arrays(folder, key)
        except ValueError as error:
            if warn:
                logger.warning("The feature cache %s is damaged and not used: %s", folder, error)
            return None
        with contextlib.suppress(OSError):  # a directory that is only read
            os.utime(folder / META)
        return arrays

    def obtain(
        self, key: str, build: Callable[[CacheWriter], None], say: Callable[[str], None] = logger.info
    ) -> tuple[dict[str, np.ndarray], str]:
        """Open a cache, or build it; of several processes that want the same, one builds and the others wait.

        Args:
            key (str): Its name.
            build (Callable[[CacheWriter], None]): Writes it; ends with ``finish``.
            say (Callable[[str], None]): Gets a message if there is something to wait for. Defaults to the log.

        Returns:
            tuple[dict[str, np.ndarray], str]: Name -> array, and where it comes from, in words.

        Raises:
            OSError: If the directory cannot be written to, or something else is where the cache belongs.
        """
        arrays = self.open(key, warn=False)
        if arrays is not None:
            return arrays, "built earlier"
        with self.lock(key, say):
            arrays = self.open(key)
            if arrays is not None:
                return arrays, "built by another process"
            with self._create(key) as writer:
                build(writer)
            arrays = self.open(key)
        if arrays is None:
            raise DiskError(f"The feature cache {str(self.directory / key)!r} was changed while it was built.")
        return arrays, "built now"

    @contextlib.contextmanager
    def lock(self, key: str, say: Callable[[str], None] = logger.info) -> Iterator[None]:
        """Be the only process that builds a cache; wait for another one that does."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = self._file_lock(key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"Another process builds the feature cache {self.directory / key}; waiting for it.")
                lock.acquire()
        except OSError as error:
            raise DiskError(
                f"The directory of the feature cache, {str(self.directory)!r}, cannot be written to: {error}. Choose "
                "another one (feature_cache_dir), or keep the features in memory (feature_cache=memory)."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _create(self, key: str) -> Iterator[CacheWriter]:
        """Write a cache, with its lock; it is there when the block ends without an error.

        A damaged cache of that name is replaced, and what killed builds of it left is removed.
        """
        target = self.directory / key
        for path in [*(path for name, path in self.unfinished() if name == key), target]:
            if path.is_dir() and _has_only_our_files(path):
                _discard(path)
        if target.exists() or target.is_symlink():
            msg = f"{str(target)!r} is in the way: it is not, or not only, a feature cache. Move it elsewhere."
            raise DiskError(msg)
        folder = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".partial", dir=self.directory))
        folder.chmod(self.directory.stat().st_mode & 0o777)  # mkdtemp's folders are closed to others
        writer = CacheWriter(folder)
        try:
            yield writer
            folder.rename(target)
        except BaseException:
            writer.close()
            _remove(folder)
            raise

    def free(self) -> int:
        """Return the bytes that a new cache may have."""
        return max(shutil.disk_usage(self.directory).free - RESERVE, 0)

    @property
    def limit(self) -> int:
        """Bytes that all caches together may have; older ones make room for new ones.

        Raises:
            ValueError: If the variable of the environment is not a positive number.
        """
        text = os.environ.get(LIMIT, "")
        try:
            value = float(text or LIMIT_GB)
        except ValueError:
            value = -1.0
        if not value > 0:
            raise InputError(f"{LIMIT} is the limit of the feature caches in gigabytes, such as 20, got {text!r}.")
        return int(min(value, 1e9) * 1e9)

    def make_room(self, needed: int, keep: Collection[str] = (), reserved: int = 0) -> list[CacheEntry]:
        """Delete caches, those that were used longest ago first, until a new one fits under the limit and on the disk.

        Args:
            needed (int): Bytes of the new one.
            keep (Collection[str]): Keys that are not deleted. Defaults to ``()``.
            reserved (int): Bytes of the disk that are for something else. Defaults to ``0``.

        Returns:
            list[CacheEntry]: The deleted ones.
        """
        entries, deleted = self.entries(), []
        total = sum(entry.size for entry in entries)
        for entry in reversed(entries):
            if total + needed <= self.limit and needed + reserved <= self.free():
                break
            if entry.key not in keep and self.clear(entry.key)[0]:
                deleted.append(entry)
                total -= entry.size
        return deleted

    def clear(self, prefix: str = "") -> tuple[list[CacheEntry], int, list[str]]:
        """Delete caches, and what killed builds left. Running trainings keep what they have mapped.

        Args:
            prefix (str): Only the caches whose key begins so. Defaults to ``""``.

        Returns:
            tuple[list[CacheEntry], int, list[str]]: The deleted caches, the bytes that were freed, and the keys that
            were left because they are being built.
        """
        entries = {entry.key: entry for entry in self.entries()}
        leftovers = self.unfinished()
        deleted, freed, busy = [], 0, []
        for key in sorted({*entries, *(name for name, _ in leftovers)}):
            if not key.startswith(prefix):
                continue
            lock = self._file_lock(key)
            try:
                lock.acquire(timeout=0)
                if key in entries:
                    freed += _discard(entries[key].path)
                    deleted.append(entries[key])
                freed += sum(_remove(path) for name, path in leftovers if name == key)
                Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it notices and makes a new one
            except Timeout:
                busy.append(key)
            except OSError as error:
                logger.warning("The feature cache %s could not be deleted: %s", key, error)
            finally:
                lock.release()
        return deleted, freed, busy

    def _folders(self) -> list[Path]:
        paths = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        named = [path for path in paths if _KEY.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)]
        return [path for path in named if _has_only_our_files(path)]

    def _file_lock(self, key: str) -> FileLock:
        return FileLock(self.directory / f".{key}.lock")


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read the description of a cache; empty if there is none that can be read."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) and meta.get("kind") == KIND else {}


def _map_arrays(folder: Path, key: str) -> dict[str, np.ndarray]:
    """Map the arrays of a cache into memory; a ValueError says what is wrong with the folder."""
    meta = _read_meta(folder)
    if meta.get("key") != key:
        raise InputError(f"{META} is missing, cannot be read or belongs to another cache.")
    if not {f"{name}.npy" for name in meta.get("arrays", ())} <= set(FILES):
        raise InputError(f"{META} names arrays that no cache has.")
    try:
        # Private pages: torch warns about arrays that cannot be written to, and nothing goes back to the file.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in {*meta["arrays"], *REQUIRED}}
        for name, array in arrays.items():
            wanted = meta["arrays"][name]
            if list(array.shape) != wanted["shape"] or array.dtype.name != wanted["dtype"]:
                raise InputError(f"{name}.npy has {array.shape}, {array.dtype.name}; {META} says {wanted}.")
    # Other errors of the system, for example too many open files, say nothing about the cache.
    except (FileNotFoundError, EOFError, KeyError, TypeError) as error:
        raise InputError(f"{type(error).__name__}: {error}") from error
    return arrays


def _has_only_our_files(folder: Path) -> bool:
    """Whether this is a real folder, no link, with nothing in it that is not a part of a cache."""
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and all(path.name in FILES and path.is_file() for path in folder.iterdir())
    )


def _discard(folder: Path) -> int:
    """Delete a cache under another name: network disks keep files that are mapped, and with them the folder."""
    unfinished = folder
    if not _UNFINISHED.fullmatch(folder.name):
        unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
        folder.rename(unfinished)
    return _remove(unfinished)


def _remove(folder: Path) -> int:
    """Delete the files of a cache, and the folder if it is empty then; return the bytes that were freed."""
    freed = 0
    # Remove meta.json first, so that a partial delete is never taken for a cache.
    for path in sorted(folder.iterdir(), key=lambda path: path.name != META):
        if path.name in FILES and path.is_file():
            freed += path.lstat().st_size
            path.unlink()
    with contextlib.suppress(OSError):  # somebody's files are in it
        folder.rmdir()
    return freed
