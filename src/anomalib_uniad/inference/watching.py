# SPDX-License-Identifier: Apache-2.0
"""Images as they arrive in folders."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import Event

from anomalib_uniad.errors import InputError, MissingFileError, MissingPackageError
from anomalib_uniad.files import real_path
from anomalib_uniad.image_files import look

from .images import HEATMAPS, MASKS, TABLE, ImageFile, check_readable, is_image, prefixes_of, search

SETTLED = 0.2  # seconds without a change after which a file may have been written to its end
PATIENCE = 10.0  # the same, after which one that still cannot be read is given up
_AT_ONCE = 64  # files that are given out together at most
_WAKE = 100  # milliseconds after which files that wait are looked at again


@dataclass
class _Waiting:
    """A file that may still be written: its size and time of change, and since when they are these."""

    file: ImageFile
    state: tuple[int, int] = (-1, -1)
    since: float = 0.0
    broken: bool = False

    def is_ready(self, value_range: tuple[float, float] | None) -> bool:
        """Whether it is written to its end, or has to be given up.

        Raises:
            OSError: If it is not there any more.
        """
        found, now = self._state(), time.monotonic()
        state = (found.st_size, found.st_mtime_ns)
        if state != self.state:
            self.state, self.since, self.broken = state, now, False
        if now - self.since < (PATIENCE if self.broken else SETTLED):
            return False
        if not self.broken and look(self.file.path, value_range).reason:
            self.broken = True
            return False
        return True

    def _state(self) -> os.stat_result:
        try:
            return self.file.path.stat()
        except OSError:
            return self.file.path.lstat()  # a link that leads nowhere is given up later, and told of


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse what cannot be watched.

    Args:
        folders (Sequence[Path]): Folders.

    Raises:
        OSError: If one is not there or must not be read.
        ValueError: If one is a file.
        ModuleNotFoundError: If watchfiles is not installed.
    """
    for folder in folders:
        if not folder.exists():
            raise MissingFileError(f"There is no folder {folder} to watch.")
        if not folder.is_dir():
            raise InputError(f"{folder} is a file: with --watch true, give folders.")
        check_readable(folder)
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError("watchfiles is not installed: pip install 'anomalib-uniad[watch]'") from error


def arrivals(
    folders: Sequence[Path], judged: set[str], stop: Event, value_range: tuple[float, float] | None = None
) -> Iterator[list[ImageFile]]:
    """Wait for images in folders, at all depths: those that are there first, then each as it is written or moved there.

    A file is given out once, when it has not changed for a moment and can be read to its end, or when it has not
    changed for longer and still cannot. One that disappears before is forgotten. Heatmaps and masks beside a table of
    predictions are left out, and so are hidden files and folders, which will mostly be renamed.

    Args:
        folders (Sequence[Path]): The folders.
        judged (set[str]): Absolute paths that are not given out; those that are, are added.
        stop (Event): Ends it.
        value_range (tuple[float, float] | None): See :func:`~anomalib_uniad.image_files.read_image`. Defaults to
            ``None``.

    Yields:
        list[ImageFile]: Images that are ready, sorted by path.
    """
    from watchfiles import watch

    prefixes = prefixes_of(folders) if len(folders) > 1 else {}
    places = {real_path(folder): (folder, prefixes.get(real_path(folder), PurePath())) for folder in folders}
    waiting: dict[str, _Waiting] = {}

    def add(place: Path, relative: Path) -> None:
        folder, prefix = places[place]
        key = str((folder / relative).absolute())
        if key not in judged and key not in waiting and not any(part.startswith(".") for part in relative.parts):
            waiting[key] = _Waiting(ImageFile(folder / relative, prefix / relative))

    changes = watch(
        *places,
        watch_filter=None,
        debounce=200,
        step=20,
        stop_event=stop,
        rust_timeout=_WAKE,
        yield_on_timeout=True,
        ignore_permission_denied=True,  # of folders, which the search tells of
    )
    next(changes, None)  # it watches from now on, so that no file is missed after the search
    for place in places:
        for relative in search(place):
            add(place, relative)
    while not stop.is_set():
        ready = []
        for key, one in sorted(waiting.items()):
            try:
                if not one.is_ready(value_range):
                    continue
                ready.append(one.file)
                judged.add(key)
            except OSError:
                pass  # it has disappeared
            del waiting[key]
            if len(ready) == _AT_ONCE:
                yield ready
                ready = []
            if stop.is_set():
                return
        if ready:
            yield ready
        for _, name in next(changes, set()):
            path = Path(name)
            place = next(place for place in places if path.is_relative_to(place))
            # A folder that was moved here, or that had files before it was watched.
            found = [path / inner for inner in search(path)] if path.is_dir() else [path] if is_image(path) else []
            for image in found:
                if not _is_output(image):
                    add(place, image.relative_to(place))


def _is_output(path: Path) -> bool:
    """Whether a picture is of a prediction."""
    return any(folder.name in {HEATMAPS, MASKS} and (folder.parent / TABLE).exists() for folder in path.parents)
