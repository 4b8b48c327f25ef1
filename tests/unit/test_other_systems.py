# SPDX-License-Identifier: Apache-2.0
"""What is other in Windows and macOS, as far as it can be had here."""

import errno
import pickle
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest

from anomalib_uniad import MultiCategory
from anomalib_uniad.category import categories_of, category_from_path, find_category
from anomalib_uniad.errors import DiskError
from anomalib_uniad.files import replacing
from anomalib_uniad.inference.workers import Task
from anomalib_uniad.inference.writer import picture_names
from anomalib_uniad.training.run_folder import _agree
from helpers import make_mvtec_like


def test_a_file_that_is_open_elsewhere(tmp_path: Path, monkeypatch) -> None:
    """Windows does not replace it."""
    file = tmp_path / "table.csv"
    file.write_text("old")

    def refuse(self, target) -> None:
        raise PermissionError(errno.EACCES, "Access is denied", str(self), 5, str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    message = (
        r"table\.csv cannot be replaced \(Access is denied\): close it in other programs, or change its permissions"
    )
    with pytest.raises(DiskError, match=message), replacing(file) as (part,):
        part.write_text("new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_paths_of_windows() -> None:
    path = PureWindowsPath(r"D:\line 3\bottle\test\good\000.png")
    assert categories_of([path]) == [category_from_path(path)] == ["bottle"]
    assert find_category(path, {"bottle", "D:\\"}) == "bottle"
    assert categories_of([PureWindowsPath(r"D:\000.png")]) == ["unknown"]
    names = picture_names([PureWindowsPath(r"good\A.png"), PureWindowsPath(r"good\a.jpg"), PureWindowsPath(r"b\a.png")])
    assert [name.as_posix() for name in names] == ["good/A.png.png", "good/a.jpg.png", "b/a.png"]


@pytest.fixture
def no_links(monkeypatch) -> None:
    def refuse(*arguments, **options) -> None:
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_a_system_without_links(tmp_path: Path, monkeypatch, request) -> None:
    """A run is where it is, without `latest`."""
    for name in ("v0", "v1", "v2"):
        (tmp_path / name).mkdir()
    (tmp_path / "v0" / "metrics.csv").touch()
    (tmp_path / "latest").symlink_to(tmp_path / "v2", target_is_directory=True)
    request.getfixturevalue("no_links")
    strategy = SimpleNamespace(broadcast=lambda path: path)
    _agree(SimpleNamespace(default_root_dir=tmp_path / "v1", strategy=strategy, is_global_zero=True), None)
    assert (tmp_path / "latest").resolve() == (tmp_path / "v2").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "v0", "v1", "v2"]


def test_what_other_processes_get(tmp_path: Path) -> None:
    """Windows and macOS start them anew, so that all they work on has to be pickled."""
    root = make_mvtec_like(tmp_path / "products", train=2, good=1, bad=1)
    datamodule = MultiCategory(root=root, num_workers=0)
    datamodule.setup()
    for part in (datamodule.train_data, datamodule.val_data, datamodule.test_data):
        copy = pickle.loads(pickle.dumps(part))
        assert copy[0].image.equal(part[0].image)
        assert copy.collate_fn is not None
    task = Task(tmp_path, Path("model.xml"), "CPU", "f32", 1, (0, "", None, None), True, ("a", "b"))
    assert pickle.loads(pickle.dumps(task)) == task
