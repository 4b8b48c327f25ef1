# SPDX-License-Identifier: Apache-2.0
"""Names of files, folders of results, files written as a whole, versions of packages: for all rooms, no torch."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_uniad.errors import DiskError, ExistingFileError, UserError

if TYPE_CHECKING:
    from PIL import Image

ABANDONED = 3600.0  # seconds after which nobody writes a hidden file any more
# Errors of the system where a file has no room.
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO}
_LONGEST = 100  # bytes in UTF-8; file systems take 255, with what others add
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # by Windows


def version_of(package: str) -> str | None:
    """Return the version of an installed package, ``None`` if it is not installed (this one, in a source tree)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_output(folder: Path, files: Sequence[Path] = (), overwrite: bool = False) -> None:
    """Refuse a folder for results in which something would be lost, before any work.

    Args:
        folder (Path): The folder; it need not be there.
        files (Sequence[Path]): The files that will be written. Defaults to ``()``.
        overwrite (bool): Whether these may be replaced. Defaults to ``False``.

    Raises:
        FileExistsError: If the folder is a file, one of the files a folder, or one is there that must not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ExistingFileError(f"{folder} is a file: give a folder as output.")
    there = [file for file in files if file.exists() or file.is_symlink()]
    if there and not overwrite:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ExistingFileError(
            f"{there[0]}{more} would be overwritten: choose another output folder, or set overwrite to true."
        )
    for file in there:
        if file.is_dir():
            raise ExistingFileError(f"{file} is a folder: choose another output folder.")


def check_writable(folder: Path) -> None:
    """Make a folder, and refuse one in which nothing can be written, before any work.

    Args:
        folder (Path): The folder.

    Raises:
        OSError: If it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def replacing(*paths: Path, overwrite: bool = True, flush: bool = True) -> Iterator[list[Path]]:
    """Write files under temporary names beside them, and rename all of them in the end.

    After an exception, all files are as they were before. A process that is killed, or a machine that stops, leaves the
    older files or the new ones: those of several are never mixed, though in the moment in which they are renamed, some
    may be missing; the older ones are then hidden files beside them, with ``older`` in their names.

    Args:
        *paths (Path): Files to write, which belong together; existing ones are replaced.
        overwrite (bool): Replace files that are there in the end. Defaults to ``True``.
        flush (bool): Bring everything to the disk before older files go, and remove what earlier processes that were
            killed have left. ``False`` is for many small files that can be made again. Defaults to ``True``.

    Yields:
        list[Path]: Temporary paths in the same folders, to write to; each must exist in the end.

    Raises:
        FileExistsError: If a file is there, and ``overwrite`` is false.
        OSError: If the disk is full; the message names the file.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "table.csv"
        >>> with replacing(target) as (path,):
        ...     _ = path.write_text("a,b")
        ...     target.exists()
        False
        >>> target.read_text()
        'a,b'
    """
    partial = [_hidden(path, "partial") for path in paths]
    try:
        with full_disk_named(*paths):
            yield partial
            if flush:
                for path in (*partial, *_folders(paths)):
                    flush_to_disk(path)
        _put_in_place(partial, paths, overwrite)
        if flush:
            for folder in _folders(paths):
                flush_to_disk(folder)
            for path in paths:
                _remove_abandoned(path.parent, re.escape(_short(path.stem)), re.escape(path.suffix))
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _put_in_place(partial: Sequence[Path], targets: Sequence[Path], overwrite: bool) -> None:
    """Rename files; older ones of several go out of the way before, so that they are never beside new ones."""
    aside: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for target in targets if overwrite and len(targets) > 1 else ():
            if target.exists() or target.is_symlink():
                aside.append((_hidden(target, "older"), target))
                target.rename(aside[-1][0])
        for path, target in zip(partial, targets, strict=True):
            if overwrite:
                path.replace(target)
            else:
                _move_new(path, target)
            placed.append(target)
    except BaseException:
        if aside or not overwrite:
            for target in placed:
                target.unlink(missing_ok=True)
        for older, target in aside:
            with contextlib.suppress(FileNotFoundError):  # the one that could not be renamed
                older.rename(target)
        raise
    for older, _ in aside:
        older.unlink()


def _move_new(path: Path, target: Path) -> None:
    """Rename a file where there is none, also if another process writes one at the same time."""
    try:
        os.link(path, target)  # a rename would replace what is there
    except OSError as error:  # perhaps because the file system has no links
        if isinstance(error, FileExistsError) or target.exists() or target.is_symlink():
            raise ExistingFileError(
                f"{target} has been written by another process meanwhile, and is left as it is: choose another output "
                "folder, or set overwrite to true."
            ) from error
        path.rename(target)


def _hidden(path: Path, kind: str) -> Path:
    # The suffix stays, since writers choose a format by it.
    return path.with_name(f".{_short(path.stem)}.{secrets.token_hex(4)}.{kind}{path.suffix}")


def _short(stem: str) -> str:
    return os.fsdecode(os.fsencode(stem)[:_LONGEST])


def _folders(paths: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys(path.parent for path in paths))


@contextmanager
def partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a hidden folder for files that are moved elsewhere once they are complete; it is removed in the end.

    What earlier processes that were killed have left of the same name is removed as well.

    Args:
        parent (Path): Where it is made.
        name (str): What its name begins with, after a dot.

    Yields:
        Path: The folder.
    """
    _remove_abandoned(parent, re.escape(name), "")
    # The same name as of files, so that all that is left by kills is found in the same way.
    folder = parent / f".{name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(folder: Path, stem: str, suffix: str) -> None:
    """Remove what killed processes have left; others may be at work on the same files, so only what is old enough."""
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{8}}\.(partial|older){suffix}")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another process has removed it
                found = path.lstat()
                if time.time() - max(found.st_mtime, found.st_ctime) > ABANDONED:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()


def flush_to_disk(path: Path) -> None:
    """Have the system bring a file, or the names in a folder, to the disk; links are left out.

    Args:
        path (Path): The file or folder.

    Raises:
        OSError: If the file cannot be written.
    """
    if path.is_symlink():
        return
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    with contextlib.suppress(OSError):  # not all systems can do that
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def full_disk_named(*paths: Path) -> Iterator[None]:
    """Turn what the system says about a full disk, which has no name of a file in it, into a sentence that has.

    Args:
        *paths (Path): Files that are written in this context.

    Raises:
        OSError: The same error, with a sentence.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or isinstance(error, UserError):
            raise
        raise disk_error(error.strerror or str(error), *paths) from error


def disk_error(reason: str, *paths: Path) -> DiskError:
    """The error of files that could not be written.

    Args:
        reason (str): Why.
        *paths (Path): The files, which are as they were before.

    Examples:
        >>> str(disk_error("No space left on device", Path("a.csv")))
        'a.csv cannot be written: No space left on device; make room, or choose another folder.'
    """
    names = " and ".join(map(str, paths[:2])) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
    return DiskError(f"{names} cannot be written: {reason}; make room, or choose another folder.")


def save_picture(picture: "Image.Image", file: Path, **options: Any) -> None:
    """Write a picture, whole or not at all, as ``picture.save`` does.

    Args:
        picture (Image.Image): The picture.
        file (Path): The file, whose suffix says of which type; an older one is replaced.
        **options (Any): Of the type, such as ``quality``.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the suffix is of no type.
    """
    from PIL import Image

    data = io.BytesIO()  # Pillow does not notice if the end of a JPEG has no room on the disk
    picture.save(data, Image.registered_extensions().get(file.suffix.lower()), **options)
    with replacing(file, flush=False) as (part,):
        part.write_bytes(data.getbuffer())


def file_names(categories: Sequence[str]) -> dict[str, str]:
    """Choose a name for each category, whose own name may have slashes and the like.

    Args:
        categories (Sequence[str]): Names of all categories, in the order of the run.

    Returns:
        dict[str, str]: Category -> name without suffix: its own name if it has letters, digits, dots, hyphens, spaces
        and underscores only. No two are equal, also where upper and lower case are not told apart.

    Examples:
        >>> file_names(["metal_nut", "a/b", "a|b", "..", "Con", "con"])
        {'metal_nut': 'metal_nut', 'a/b': 'a_b', 'a|b': 'a_b_', '..': '_.', 'Con': 'Con_', 'con': 'con__'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for category in categories:
        name = re.sub(r"^\.", "_", re.sub(r"[^\w.\- ]", "_", category))
        name = name.encode()[:_LONGEST].decode(errors="ignore") or "_"
        name += "_" if _RESERVED.fullmatch(name) else ""
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        names[category] = name
    return names
