# SPDX-License-Identifier: Apache-2.0
"""Files: their names, where they may lie, how they are written as a whole, yaml, cells of tables; no torch."""

import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from anomalib_uniad.errors import ExistingFileError, InputError

if TYPE_CHECKING:
    import pandas as pd

_LONGEST = 100  # bytes in UTF-8; file systems take 255, with what others add
ODD: Literal["backslashreplace"] = "backslashreplace"
"""How text is written that is none: names of files may be any bytes."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""With what a text begins that spreadsheets take for a formula, and may run."""
_MOST_VALUES = 1_000_000  # of a yaml file; aliases can make any number of a few lines
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

    After an exception, all files are as they were before.

    Args:
        *paths (Path): Files to write; existing ones are replaced.

    Yields:
        list[Path]: Temporary paths in the same folders, to write to; each must exist in the end.

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
            path.replace(target)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


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
        real = Path(os.path.realpath(file))
    except (OSError, ValueError):  # a name that is none
        return False
    roots = [root for root in map(Path, map(os.path.realpath, folders)) if real.is_relative_to(root)]
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
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        too_many = _values_of(content, {}) > _MOST_VALUES
    except OSError:
        raise
    except Exception as error:  # of yaml, for values that are none of their type, all kinds
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{file} is no YAML: {reason}.") from error
    if too_many:
        raise InputError(f"{file} has more than {_MOST_VALUES:,} values, as aliases of each other.")
    return content


def _values_of(content: Any, known: dict[int, float]) -> float:
    """How many values there are, each as often as it is shown; infinitely many if one is a part of itself."""
    if isinstance(content, int) and content.bit_length() > 1000:  # no float can be
        raise ValueError("it has a number that is too large")
    if not isinstance(content, dict | list | set | tuple):
        return 1
    if id(content) not in known:
        known[id(content)] = float("inf")
        parts = [*content, *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_values_of(part, known) for part in parts)
    return known[id(content)]


def plain(text: Any) -> Any:
    """Keep spreadsheets from taking the text of a cell for a formula; :func:`original` reads it back.

    Args:
        text (Any): Text that may have come from anywhere; other values stay as they are.

    Returns:
        Any: The text, with an apostrophe before it if it begins as a formula does.

    Examples:
        >>> [plain(text) for text in ("=1+1", "'=1+1", "bolt", -1.5)]
        ["'=1+1", "''=1+1", 'bolt', -1.5]
    """
    return f"'{text}" if isinstance(text, str) and text.lstrip("'").startswith(FORMULA) else text


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
    changes = {name: plain_path if name == "path" and change is plain else change for name in texts}
    return frame.assign(**{name: frame[name].map(of) for name, of in changes.items()}).rename(columns=change)
