# SPDX-License-Identifier: Apache-2.0
import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import feature_store_worker
from anomalib_uniad.errors import InputError
from anomalib_uniad.training.feature_store import META, FeatureStore

KEY = "0123456789abcdef" * 2
OTHER = "f" * 32
FEATURES = np.arange(3 * 2 * 4 * 4, dtype=np.float16).reshape(3, 2, 4, 4)


def write(writer, key: str = KEY) -> None:
    writer.start("features", FEATURES.shape, "float16")
    writer.append("features", FEATURES[:2])
    writer.append("features", FEATURES[2:])
    writer.start("labels", (3,), "int8")
    writer.append("labels", np.array([0, 1, -1]))
    writer.start("masks", (3, 5, 7), "uint8")
    writer.append("masks", np.full((3, 5, 7), 255))
    writer.finish({"key": key, "dataset": "Products, training", "images": 3})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = FeatureStore(tmp_path / "features")
    store.obtain(KEY, write)
    return store


def never(writer) -> None:
    raise AssertionError("must not be built again")


def start_worker(directory: Path) -> subprocess.Popen:
    command = [sys.executable, feature_store_worker.__file__, str(directory), KEY]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_old_caches_make_room(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used longest ago go first, and only as many as must."""
    keys = [KEY, *(str(number) * 32 for number in range(3))]
    for number, key in enumerate(keys):
        store.obtain(key, lambda writer, key=key: write(writer, key))
        os.utime(store.directory / key / META, (number, number))
    size = store.entries()[0].size
    monkeypatch.setenv("ANOMALIB_UNIAD_CACHE_GB", str(3.5 * size / 1e9))
    assert [entry.key for entry in store.make_room(size // 4, keep=[KEY])] == [keys[1]]
    assert store.make_room(size // 4) == []
    monkeypatch.delenv("ANOMALIB_UNIAD_CACHE_GB")
    assert store.limit == 20e9
    with monkeypatch.context() as patch:  # a disk that has room for a new one as soon as two are gone
        patch.setattr(store, "free", lambda: size * (3 - len(store.entries())))
        assert [entry.key for entry in store.make_room(2 * size)] == [KEY, keys[2]]
    for wrong in ("-1", "much", "nan"):
        monkeypatch.setenv("ANOMALIB_UNIAD_CACHE_GB", wrong)
        with pytest.raises(InputError, match=f"ANOMALIB_UNIAD_CACHE_GB is the limit .* in gigabytes.* got '{wrong}'"):
            _ = store.limit


def test_what_was_written_is_read(store: FeatureStore) -> None:
    arrays, how = store.obtain(KEY, never)
    assert how == "built earlier"
    assert isinstance(arrays["features"], np.memmap)
    np.testing.assert_array_equal(arrays["features"], FEATURES)
    np.testing.assert_array_equal(arrays["labels"], [0, 1, -1])
    assert arrays["masks"].shape == (3, 5, 7)
    arrays["features"][0] = 0  # stays in this process
    np.testing.assert_array_equal(store.open(KEY)["features"], FEATURES)
    (entry,) = store.entries()
    assert (entry.key, entry.meta["dataset"]) == (KEY, "Products, training")
    assert entry.size == sum(path.stat().st_size for path in entry.path.iterdir())
    assert entry.meta["arrays"]["features"] == {"shape": [3, 2, 4, 4], "dtype": "float16"}
    assert store.open(OTHER) is None


def test_the_default_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FeatureStore().directory == tmp_path / "anomalib-uniad" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeatureStore().directory == tmp_path / ".cache" / "anomalib-uniad" / "features"
    assert FeatureStore("~/here").directory == tmp_path / "here"


def truncate(folder: Path) -> None:
    with (folder / "features.npy").open("r+b") as file:
        file.truncate(100)


def lose_labels(folder: Path) -> None:
    (folder / "labels.npy").unlink()


def break_meta(folder: Path) -> None:
    (folder / META).write_text("{")


def lose_meta(folder: Path) -> None:
    (folder / META).unlink()


def strange_meta(folder: Path) -> None:
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**meta, "arrays": {"features": 7}}))


def other_key(folder: Path) -> None:
    meta = json.loads((folder / META).read_text())
    (folder / META).write_text(json.dumps({**meta, "key": OTHER}))


def other_type(folder: Path) -> None:
    np.save(folder / "features.npy", FEATURES.view(np.int16))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGES = [truncate, lose_labels, break_meta, lose_meta, strange_meta, other_key, other_type, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_again(store: FeatureStore, damage, caplog) -> None:
    damage(store.directory / KEY)
    assert store.open(KEY, warn=False) is None
    with caplog.at_level(logging.WARNING):
        arrays, how = store.obtain(KEY, write)
    assert how == "built now"
    np.testing.assert_array_equal(arrays["features"], FEATURES)
    assert caplog.text.count("is damaged and not used") == 1
    assert store.obtain(KEY, never)[1] == "built earlier"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_can_be_cleared(store: FeatureStore, damage) -> None:
    damage(store.directory / KEY)
    assert [entry.key for entry in store.entries()] == [KEY]
    store.clear()
    assert list(store.directory.iterdir()) == []


def test_other_files_are_never_touched(store: FeatureStore) -> None:
    folder = store.directory / OTHER
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    (folder / META).write_text("{}")
    (store.directory / "notes.txt").write_text("mine")
    (store.directory / "photos").mkdir()
    (store.directory / ("a" * 32)).write_text("a file, no folder")
    (store.directory / ("b" * 32)).symlink_to(store.directory / KEY)
    kept = {path for path in store.directory.rglob("*") if KEY not in path.name and path.parent.name != KEY}
    with pytest.raises(OSError, match=r"f{32}' is in the way"):
        store.obtain(OTHER, lambda writer: write(writer, OTHER))
    for key in ("a" * 32, "b" * 32):
        with pytest.raises(OSError, match=r"is in the way"):
            store.obtain(key, lambda writer: write(writer, "c" * 32))
    assert [entry.key for entry in store.entries()] == [KEY]
    deleted, freed, busy = store.clear()
    assert [entry.key for entry in deleted] == [KEY]
    assert freed == deleted[0].size > 0
    assert busy == []
    locks = {path for path in store.directory.iterdir() if path.name.endswith(".lock")}
    assert {*store.directory.rglob("*")} - locks == kept
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_file_in_a_cache_keeps_its_folder(store: FeatureStore) -> None:
    (store.directory / KEY / "notes.txt").write_text("mine")
    assert store.clear() == ([], 0, [])
    assert len(list((store.directory / KEY).iterdir())) == 5


def test_clear_by_the_beginning_of_the_key(store: FeatureStore) -> None:
    store.obtain(OTHER, lambda writer: write(writer, OTHER))
    assert [entry.key for entry in store.clear("fff")[0]] == [OTHER]
    assert [entry.key for entry in store.entries()] == [KEY]
    assert store.clear("x") == ([], 0, [])


def test_a_cache_can_be_deleted_while_it_is_used(store: FeatureStore) -> None:
    arrays = store.open(KEY)
    store.clear()
    np.testing.assert_array_equal(arrays["features"], FEATURES)


def test_files_that_a_network_disk_keeps(store: FeatureStore, monkeypatch) -> None:
    """NFS renames deleted files that are mapped; the next training is not to find them in its way."""
    unlink = Path.unlink

    def keep(path: Path, **arguments) -> None:
        if path.name == "features.npy":
            path.rename(path.with_name(".nfs0001"))
        else:
            unlink(path, **arguments)

    monkeypatch.setattr(Path, "unlink", keep)
    assert [entry.key for entry in store.clear()[0]] == [KEY]
    assert not (store.directory / KEY).exists()
    arrays, how = store.obtain(KEY, write)
    assert how == "built now"
    np.testing.assert_array_equal(arrays["features"], FEATURES)


def test_errors_of_the_system_are_no_damage(store: FeatureStore, monkeypatch) -> None:
    def fail(*arguments, **keywords):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", fail)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            store.obtain(KEY, never)
    assert store.obtain(KEY, never)[1] == "built earlier"


def test_what_cannot_be_deleted_is_said(store: FeatureStore, monkeypatch, caplog) -> None:
    store.obtain(OTHER, lambda writer: write(writer, OTHER))
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == KEY:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert [entry.key for entry in store.clear()[0]] == [OTHER]
    assert f"The feature cache {KEY} could not be deleted: " in caplog.text
    assert [entry.key for entry in store.entries()] == [KEY]


def test_use_is_noted(store: FeatureStore) -> None:
    os.utime(store.directory / KEY / META, (1000, 1000))
    store.obtain(OTHER, lambda writer: write(writer, OTHER))
    assert store.entries()[-1].last_used == 1000
    store.open(KEY)
    assert store.entries()[0].key == KEY
    assert store.entries()[0].meta["created"] > 1000


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)

    def fail(writer) -> None:
        writer.start("features", FEATURES.shape, "float16")
        writer.append("features", FEATURES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.obtain(KEY, fail)
    assert {path.name for path in tmp_path.iterdir()} <= {f".{KEY}.lock"}  # which some versions of filelock leave
    assert store.obtain(KEY, write)[1] == "built now"


def test_too_few_rows_are_no_cache(tmp_path: Path) -> None:
    def stop_early(writer) -> None:
        writer.start("features", FEATURES.shape, "float16")
        writer.append("features", FEATURES[:2])
        writer.start("labels", (3,), "int8")
        writer.append("labels", np.zeros(3))
        writer.finish({"key": KEY})

    with pytest.raises(OSError, match="was changed while it was built"):
        FeatureStore(tmp_path).obtain(KEY, stop_early)


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to: .*feature_cache=memory"):
        FeatureStore(tmp_path / "file" / "features").obtain(KEY, write)


def test_kill_in_the_middle(tmp_path: Path) -> None:
    worker = start_worker(tmp_path)
    assert worker.stdout.readline() == "begun\n"
    store = FeatureStore(tmp_path)
    assert store.entries() == []
    assert [key for key, _ in store.unfinished()] == [KEY]
    assert store.clear() == ([], 0, [KEY])  # it is being built: hands off
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert store.open(KEY) is None
    assert len(store.unfinished()) == 1
    arrays, how = store.obtain(KEY, write)
    assert how == "built now"
    np.testing.assert_array_equal(arrays["features"], FEATURES)
    assert store.unfinished() == []


def test_what_a_kill_left_can_be_cleared(tmp_path: Path) -> None:
    worker = start_worker(tmp_path)
    worker.stdout.readline()
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    deleted, freed, busy = FeatureStore(tmp_path).clear()
    assert (deleted, busy) == ([], [])
    assert freed >= 0
    assert list(tmp_path.iterdir()) == []


def test_two_processes_build_once(tmp_path: Path) -> None:
    first = start_worker(tmp_path)
    assert first.stdout.readline() == "begun\n"
    second = start_worker(tmp_path)
    assert second.stdout.readline().startswith("Another process builds the feature cache ")
    outputs = [worker.communicate(timeout=60)[0] for worker in (first, second)]
    assert outputs == ["built now: 276\n", "built by another process: 276\n"]
