# SPDX-License-Identifier: Apache-2.0
"""Files that are written as a whole: what is there at each moment, after errors, and beside other processes."""

import errno
import os
import re
import stat
import time
from pathlib import Path

import pytest

from anomalib_uniad import files
from anomalib_uniad.errors import DiskError, ExistingFileError
from anomalib_uniad.files import partial_folder, replacing
from full_disk import full_disk

NAMES = ("model.bin", "model.xml", "model.txt")


def write(folder: Path, text: str, **arguments: bool) -> None:
    with replacing(*(folder / name for name in NAMES), **arguments) as parts:
        for part in parts:
            part.write_text(text)


def visible(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name[0] != "."}


def test_files_that_belong_together_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the process is killed: all older files, all new ones, or some are missing."""
    write(tmp_path, "old")
    seen: list[dict[str, str]] = []

    def watched(name: str) -> None:
        original = getattr(Path, name)

        def wrapper(self: Path, *arguments: object, **others: object) -> object:
            seen.append(visible(tmp_path))
            return original(self, *arguments, **others)

        monkeypatch.setattr(Path, name, wrapper)

    for name in ("rename", "replace", "unlink"):
        watched(name)
    write(tmp_path, "new")
    assert seen[0] == dict.fromkeys(NAMES, "old")
    assert visible(tmp_path) == dict.fromkeys(NAMES, "new")
    assert all(len(set(state.values())) <= 1 for state in seen)
    assert len(list(tmp_path.iterdir())) == 3, "nothing hidden is left"


def test_a_new_file_is_on_the_disk_before_the_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, events = tmp_path / "model.ckpt", []
    file.write_text("old")
    fsync = os.fsync

    def flushed(descriptor: int) -> None:
        found = os.fstat(descriptor)
        events.append((found.st_size if stat.S_ISREG(found.st_mode) else "folder", file.read_text()))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", flushed)
    with replacing(file) as (part,):
        part.write_text("newer")
    assert events[0] == (5, "old")
    assert events[-1] == ("folder", "newer")
    events.clear()
    with replacing(file, flush=False) as (part,):
        part.write_text("newest")
    assert not events


@pytest.mark.parametrize("broken", range(3))
def test_all_older_files_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    write(tmp_path, "old")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == NAMES[broken]:
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError):
        write(tmp_path, "new")
    assert visible(tmp_path) == dict.fromkeys(NAMES, "old")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("links", [True, False])
def test_what_another_process_has_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:  # as on some network disks
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "not here")))
    with (
        pytest.raises(ExistingFileError, match=r"model\.xml has been written by another process meanwhile"),
        replacing(*(tmp_path / name for name in NAMES), overwrite=False) as parts,
    ):
        for part in parts:
            part.write_text("mine")
        (tmp_path / NAMES[1]).write_text("theirs")
    assert visible(tmp_path) == {NAMES[1]: "theirs"}
    (tmp_path / NAMES[1]).unlink()
    write(tmp_path, "mine", overwrite=False)
    assert visible(tmp_path) == dict.fromkeys(NAMES, "mine")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk(tmp_path: Path) -> None:
    write(tmp_path, "old")
    names = re.escape(f"{tmp_path / NAMES[0]} and {tmp_path / NAMES[1]} and 1 more")
    sentence = rf"^{names} cannot be written: File too large; make room, or choose another folder\.$"
    with pytest.raises(DiskError, match=sentence), full_disk(100):
        write(tmp_path, "new" * 100)
    assert visible(tmp_path) == dict.fromkeys(NAMES, "old")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_killed_processes_have_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not what another process may be writing now, nor anything of another name."""
    left = [tmp_path / f".model.0123abcd.{kind}.xml" for kind in ("partial", "older")]
    others = [tmp_path / name for name in (".model.0123abcd.partial.a", ".model.xml", ".a.model.0123abcd.older.xml")]
    for path in (*left, *others):
        path.write_text("")
    folder = tmp_path / ".model.0123abcd.partial"
    folder.mkdir()
    (folder / "part").write_text("")
    write(tmp_path, "new")
    assert all(path.exists() for path in (*left, *others))
    now = time.time()
    monkeypatch.setattr(files.time, "time", lambda: now + files.ABANDONED + 1)
    write(tmp_path, "newer")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in (*others, folder))
    with partial_folder(tmp_path, "model") as new:
        assert not folder.exists()
        (new / "part").write_text("")
    assert not new.exists()


def test_the_longest_names(tmp_path: Path) -> None:
    file = tmp_path / f"a{'ä' * 124}.png"
    for text in ("old", "new"):
        with replacing(file) as (part,):
            part.name.encode()  # with no half characters, which Windows does not take
            part.write_text(text)
    assert visible(tmp_path) == {file.name: "new"}
