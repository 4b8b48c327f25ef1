# SPDX-License-Identifier: Apache-2.0
"""Feature caches on disk: one folder each, complete or not there.

Nothing here imports torch, so that listing and clearing are quick.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from .feature_files import META, CacheWriter, has_only_our_files, map_arrays, read_meta, remove, size_of

logger = logging.getLogger(__name__)

RESERVE = 256 * 2**20  # bytes that are left free on the disk
_KEY = re.compile(r"[0-9a-f]{32}")
_UNFINISHED = re.compile(r"\.([0-9a-f]{32})\.[^.]+\.partial")


def default_directory() -> Path:
    """Directory of the caches if the user names none: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "anomalib-uniad" / "features"


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
        directory (Path | str | None): The directory; ``None`` is :func:`default_directory`.

    Example:
        >>> FeatureStore("/not/there").entries()
        []
    """

    def __init__(self, directory: Path | str | None = None) -> None:
        self.directory = default_directory() if directory is None else Path(directory).expanduser()

    def entries(self) -> list[CacheEntry]:
        """List the caches, also damaged ones; the one that was used last comes first."""
        found = []
        for path in self._folders():
            if _KEY.fullmatch(path.name):
                marker = path / META
                used = (marker if marker.is_file() else path).stat().st_mtime
                found.append(CacheEntry(path.name, path, read_meta(path), size_of(path), used))
        return sorted(found, key=lambda entry: -entry.last_used)

    def unfinished(self) -> list[tuple[str, Path]]:
        """List key and folder of builds that are running or were killed."""
        matches = [(_UNFINISHED.fullmatch(path.name), path) for path in self._folders()]
        return [(match[1], path) for match, path in matches if match]

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
            arrays = map_arrays(folder, key)
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
            OSError: If the directory cannot be written to.
        """
        arrays = self.open(key, warn=False)
        if arrays is not None:
            return arrays, "built earlier"
        with self.lock(key, say):
            arrays = self.open(key)
            if arrays is not None:
                return arrays, "built by another process"
            with self.create(key) as writer:
                build(writer)
            arrays = self.open(key)
        if arrays is None:
            msg = f"The feature cache {str(self.directory / key)!r} was changed while it was built."
            raise OSError(msg)
        return arrays, "built now"

    @contextlib.contextmanager
    def lock(self, key: str, say: Callable[[str], None] = logger.info) -> Iterator[None]:
        """Be the only process that builds a cache; wait for another one that does.

        Args:
            key (str): Name of the cache.
            say (Callable[[str], None]): Gets a message if there is something to wait for. Defaults to the log.

        Raises:
            OSError: If the directory cannot be written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = self._lock(key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say(f"Another process builds the feature cache {self.directory / key}; waiting for it.")
                lock.acquire()
        except OSError as error:
            msg = (
                f"The directory of the feature cache, {str(self.directory)!r}, cannot be written to: {error}. Choose "
                "another one (feature_cache_dir), or keep the features in memory (feature_cache=memory)."
            )
            raise OSError(msg) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def create(self, key: str) -> Iterator[CacheWriter]:
        """Write a cache, with its lock; it is there when the block ends without an error.

        Args:
            key (str): Name of the cache. A damaged one of that name is replaced, and what killed builds of it left
                is removed.

        Raises:
            OSError: If something else is where the cache belongs.
        """
        target = self.directory / key
        for path in [*(path for name, path in self.unfinished() if name == key), target]:
            if path.is_dir() and has_only_our_files(path):
                self._discard(path)
        if target.exists() or target.is_symlink():
            msg = f"{str(target)!r} is in the way: it is not, or not only, a feature cache. Move it elsewhere."
            raise OSError(msg)
        folder = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".partial", dir=self.directory))
        folder.chmod(self.directory.stat().st_mode & 0o777)  # mkdtemp's folders are closed to others
        writer = CacheWriter(folder)
        try:
            yield writer
            folder.rename(target)
        except BaseException:
            writer.close()
            remove(folder)
            raise

    def free(self) -> int:
        """Bytes that a new cache may have."""
        return max(shutil.disk_usage(self.directory).free - RESERVE, 0)

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
            lock = self._lock(key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                busy.append(key)
                continue
            except OSError as error:
                logger.warning("The feature cache %s is left as it is: %s", key, error)
                continue
            try:
                if key in entries:
                    freed += self._discard(entries[key].path)
                    deleted.append(entries[key])
                freed += sum(remove(path) for name, path in leftovers if name == key)
                Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it notices and makes a new one
            except OSError as error:
                logger.warning("The feature cache %s could not be deleted: %s", key, error)
            finally:
                lock.release()
        return deleted, freed, busy

    @staticmethod
    def _discard(folder: Path) -> int:
        """Delete a cache under another name, as network disks keep files that are mapped, and with them the folder."""
        unfinished = folder
        if not _UNFINISHED.fullmatch(folder.name):
            unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
            folder.rename(unfinished)
        return remove(unfinished)

    def _folders(self) -> list[Path]:
        paths = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        return [path for path in paths if _is_named(path) and has_only_our_files(path)]

    def _lock(self, key: str) -> FileLock:
        return FileLock(self.directory / f".{key}.lock")


def _is_named(path: Path) -> bool:
    return bool(_KEY.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name))
