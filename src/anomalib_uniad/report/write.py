# SPDX-License-Identifier: Apache-2.0
"""Writes the files of a report, without touching what is there."""

import uuid
from collections.abc import Mapping
from pathlib import Path

NAMES = ("report.md", "report.csv", "report.html")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder in which something would be lost.

    Args:
        output (Path): Folder of the report.
        overwrite (bool): Whether reports may be replaced.

    Raises:
        FileExistsError: If a report is there, or something else is in its place.
    """
    if output.exists() and not output.is_dir():
        msg = f"{output} is a file: give a folder as output."
        raise FileExistsError(msg)
    there = [output / name for name in NAMES if (output / name).exists() or (output / name).is_symlink()]
    if there and not overwrite:
        msg = (
            f"{' and '.join(map(str, there))} would be overwritten: choose another output folder, "
            "or set overwrite to true."
        )
        raise FileExistsError(msg)
    for file in there:
        if file.is_dir():
            msg = f"{file} is a folder: choose another output folder."
            raise FileExistsError(msg)


def write(output: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write files, each under another name first, so that nobody sees half of one.

    Args:
        output (Path): Their folder; made if it is not there.
        texts (Mapping[str, str]): Name -> content.

    Returns:
        list[Path]: The files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = [output / name for name in texts]
    partial = [file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial") for file in files]
    try:
        for path, text in zip(partial, texts.values(), strict=True):
            # newline: line ends as they are, since csv brings its own.
            path.write_text(text, encoding="utf-8", newline="")
        for path, file in zip(partial, files, strict=True):
            path.replace(file)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return files
