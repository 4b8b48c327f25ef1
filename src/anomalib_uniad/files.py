# SPDX-License-Identifier: Apache-2.0
"""Files: their names, where they may lie, how they are written as a whole, yaml, cells of tables; no torch."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from anomalib_uniad.errors import DiskError, ExistingFileError, InputError, UserError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

ABANDONED = 3600.0  # seconds after which nobody writes a hidden file any more
# Errors of the system where a file has no room.
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO}
_LONGEST = 100  # bytes in UTF-8; file systems take 255, with what others add
ODD: Literal["backslashreplace"] = "backslashreplace"
"""How text is written that is none: names of files may be any bytes."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""With what a text begins that spreadsheets take for a formula, and may run."""
_NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?|-inf", re.ASCII)
_MOST_DIGITS = 300  # of a whole number that a float can be
_MOST_VALUES = 1_000_000  # of a yaml file; aliases can make any number of a few lines
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # by Windows


def version_of(package: str) -> str | None:
    """Return the version of an installed package, ``None`` if it is not installed (this one, in a source tree)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def real_path(path: Path | str) -> Path:
    """Return a path that is absolute and free of links; unlike ``Path.resolve``, also of links in a circle.

    Args:
        path (Path | str): Path of anything, which need not be there.
    """
    return Path(os.path.realpath(path))


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


def is_there(file: Path, folders: Sequence[Path] | None = None) -> bool:
    """Whether a file is there, whose name may be anything, and lies in one of some folders if they are given."""
    try:
        return file.is_file() and (folders is None or lies_in(file, folders))
    except (OSError, ValueError):  # a name too long for the system, or one that is none
        return False


def read_text(file: Path) -> str:
    """Read a text in UTF-8.

    Args:
        file (Path): The file.

    Raises:
        ValueError: If it is in another encoding.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise InputError(f"{file} is no text in UTF-8 ({wrong}): save it as UTF-8.") from error


def shortened(text: object, length: int = 500) -> str:
    """A name, or what an error of another package says, on one line, not too long and without a dot at its end."""
    text = " ".join(str(text).split()).rstrip(".")
    return text if len(text) <= length else f"{text[:length]} ..."


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
        OSError: If the disk is full, or a file cannot be replaced, in Windows also because a program has it open; the
            message names the file.

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
    for target in targets:
        if target.is_dir() and not target.is_symlink():
            raise ExistingFileError(f"{target} is a folder: choose another output folder.")
    aside: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for target in targets if overwrite and len(targets) > 1 else ():
            if target.exists() or target.is_symlink():
                aside.append((_hidden(target, "older"), target))
                target.rename(aside[-1][0])
                with contextlib.suppress(OSError):  # it is not abandoned yet, however old the file is
                    os.utime(aside[-1][0], follow_symlinks=False)
        for path, target in zip(partial, targets, strict=True):
            if overwrite:
                path.replace(target)
            else:
                _move_new(path, target)
            placed.append(target)
    except BaseException as failure:
        if aside or not overwrite:
            for target in placed:
                target.unlink(missing_ok=True)
        for older, target in aside:
            with contextlib.suppress(FileNotFoundError):  # the one that could not be renamed
                older.rename(target)
        if isinstance(failure, PermissionError):
            what = f"{failure.filename2 or failure.filename} cannot be replaced ({failure.strerror})"
            raise DiskError(f"{what}: close it in other programs, or change its permissions.") from failure
        raise
    for older, _ in aside:
        older.unlink(missing_ok=True)


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
    return os.fsencode(stem)[:_LONGEST].decode(errors="ignore")  # a part of a letter is no name for some systems


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


def lies_in(file: Path, folders: Iterable[Path]) -> bool:
    """Whether a file lies in one of some folders, by what links lead to, and nothing on the way to it is hidden.

    Args:
        file (Path): The file, whose name may be anything; it need not be there.
        folders (Iterable[Path]): The folders.

    Examples:
        >>> [lies_in(Path(name), [Path("data")]) for name in ("data/a.png", "data/../a.png", "data/.keys/a.png")]
        [True, False, False]
    """
    try:
        real = real_path(file)
    except (OSError, ValueError):  # a name that is none
        return False
    roots = [root for root in map(real_path, folders) if real.is_relative_to(root)]
    return any(not any(part.startswith(".") for part in real.relative_to(root).parts) for root in roots)


def read_yaml(file: Path) -> Any:
    """Read a file of plain values; nothing that it names is made or looked up.

    Args:
        file (Path): The file.

    Returns:
        Any: Its content.

    Raises:
        ValueError: If it is no YAML, or has a tag of a class, a value of which it is a part, or so many aliases that
            its content would be millions of values.
    """
    try:
        loader = yaml.SafeLoader(read_text(file))
        node = loader.get_single_node()
        # Counted before they are made: aliases in merge keys (<<) would be made as often as they are named.
        too_many = _values_of(node, {}) > _MOST_VALUES
        content = None if too_many or node is None else loader.construct_document(node)
    except (OSError, UserError):
        raise
    except Exception as error:  # of yaml, for values that are none of their type, all kinds
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shortened(error)
        raise InputError(f"{file} is no YAML: {reason}.") from error
    if too_many:
        raise InputError(f"{file} has more than {_MOST_VALUES:,} values, as aliases of each other.")
    return content


def _values_of(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values there are, each as often as it is shown; infinitely many if one is a part of itself."""
    if node is None or isinstance(node, yaml.ScalarNode):
        if node is not None and node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
            raise ValueError("it has a number that is too large")
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_values_of(part, known) for part in parts)
    return known[id(node)]


def plain(text: Any) -> Any:
    """Keep spreadsheets from taking the text of a cell for a formula; :func:`original` reads it back.

    Args:
        text (Any): Text that may have come from anywhere; other values stay as they are.

    Returns:
        Any: The text, with an apostrophe before it if it begins as a formula does.

    Examples:
        >>> [plain(text) for text in ("=1+1", "'=1+1", "bolt", -1.5, "-1.5")]
        ["'=1+1", "''=1+1", 'bolt', -1.5, '-1.5']
    """
    if not isinstance(text, str) or _NUMBER.fullmatch(text):
        return text
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def plain_path(path: str) -> str:
    """Keep spreadsheets from taking a path for a formula: it stays the path of the same file.

    Args:
        path (str): The path.

    Returns:
        str: The path, with ``./`` before it if it begins as a formula does.

    Examples:
        >>> [plain_path(path) for path in ("=1+1.png", "good/0.png", "/data/0.png")]
        ['./=1+1.png', 'good/0.png', '/data/0.png']
    """
    return path if plain(path) == path else f"./{path}"


def original(text: Any) -> Any:
    """Read a cell that :func:`plain` has written.

    Args:
        text (Any): Of the cell; what is no text stays as it is.

    Returns:
        Any: What was to be written.
    """
    return text[1:] if isinstance(text, str) and text[:1] == "'" and plain(text) != text else text


def plain_table(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Make all text of a table :func:`plain`, names of columns too; paths in the column ``path`` by :func:`plain_path`.

    Args:
        frame (pd.DataFrame): The table.

    Returns:
        pd.DataFrame: Another table.
    """
    return _mapped(frame, plain)


def original_table(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Read a table that :func:`plain_table` has made.

    Args:
        frame (pd.DataFrame): The table, as pandas has read it.

    Returns:
        pd.DataFrame: Another table.
    """
    return _mapped(frame, original)


def _mapped(frame: "pd.DataFrame", change: Callable[[Any], Any]) -> "pd.DataFrame":
    texts = [name for name in frame.columns if frame[name].dtype.kind == "O"]
    how = {name: plain_path if name == "path" and change is plain else change for name in texts}
    # Columns of pandas' own type of text cannot hold names that are none.
    changed = type(frame)(
        {name: [of(value) for value in frame[name]] for name, of in how.items()}, frame.index, dtype=object
    )
    return frame.assign(**{name: changed[name] for name in texts}).rename(columns=change)
