# SPDX-License-Identifier: Apache-2.0
"""Names of files, folders of results, files written as a whole, versions of packages: for all rooms, no torch."""

import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from anomalib_uniad.errors import DiskError, ExistingFileError

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
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Write files under temporary names beside them, and rename all of them in the end.

    After an exception, files that are not replaced yet are as they were before.

    Args:
        *paths (Path): Files to write; existing ones are replaced.

    Yields:
        list[Path]: Temporary paths in the same folders, to write to; each must exist in the end.

    Raises:
        OSError: If a file cannot be replaced, in Windows also because a program has it open.

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
    # The suffix stays, since writers choose a format by it.
    partial = [path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}") for path in paths]
    try:
        yield partial
        for path, target in zip(partial, paths, strict=True):
            _replace(path, target)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _replace(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except PermissionError as error:
        what = f"{target} cannot be replaced ({error.strerror})"
        raise DiskError(f"{what}: close it in other programs, or change its permissions.") from error


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
