# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalib_uniad import cli
from anomalib_uniad.cli import main
from anomalib_uniad.training.feature_store import FeatureStore

KEYS = ["a1" * 16, "b2" * 16]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    store = FeatureStore(tmp_path / "features")
    for number, key in enumerate(KEYS, 1):

        def build(writer, key=key, number=number) -> None:
            writer.start("features", (number, 272, 14, 14), "float32")
            writer.append("features", np.zeros((number, 272, 14, 14)))
            writer.start("labels", (number,), "int8")
            writer.append("labels", np.zeros(number))
            meta = {"key": key, "dataset": f"Products [{number}], training", "images": number, "backbone": "resnet18"}
            writer.finish(meta)

        store.obtain(key, build)
    return store.directory


def test_ls(directory: Path, capsys) -> None:
    main(["cache", "ls", "--directory", str(directory)])
    out = capsys.readouterr().out
    prefixes = [key[:8] for key in KEYS]
    for text in (
        *prefixes,
        "Products [1], training",
        "resnet18",
        "float32",
        "0.2 MB",
        "0.4 MB",
        "2 in total",
        "0.6 MB",
        "if all are more than 20,000.0 MB",
    ):
        assert text in " ".join(out.split())
    assert str(directory) in out.replace("\n", "")


def test_ls_of_nothing(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main(["cache", "ls"])
    assert capsys.readouterr().out == f"There are no feature caches in {tmp_path}/anomalib-uniad/features.\n"


def test_ls_of_a_damaged_and_an_unfinished_one(directory: Path, capsys) -> None:
    (directory / KEYS[0] / "meta.json").unlink()
    (directory / f".{KEYS[1]}.xyz.partial").mkdir()
    main(["cache", "ls", "--directory", str(directory)])
    out = capsys.readouterr().out
    assert "damaged" in out
    assert "1 unfinished" in out


def test_clear(directory: Path, capsys) -> None:
    main(["cache", "clear", "--directory", str(directory)])
    out = capsys.readouterr().out
    assert f"Deleted {KEYS[0]} (Products [1], training, 0.2 MB)." in out
    assert f"Freed 0.6 MB in {directory}." in out
    assert list(directory.iterdir()) == []
    main(["cache", "clear", "--directory", str(directory)])
    assert "There are no feature caches in" in capsys.readouterr().out


def test_clear_one(directory: Path, capsys) -> None:
    main(["cache", "clear", "--directory", str(directory), "--key", "b2b2"])
    assert f"Deleted {KEYS[1]}" in capsys.readouterr().out
    assert [entry.key for entry in FeatureStore(directory).entries()] == [KEYS[0]]
    main(["cache", "clear", "--directory", str(directory), "--key", "b2b2"])
    assert "no feature caches whose key begins with 'b2b2' in" in capsys.readouterr().out


def test_clear_leaves_what_is_being_built(directory: Path, capsys) -> None:
    with FeatureStore(directory).lock(KEYS[0]):
        main(["cache", "clear", "--directory", str(directory)])
    out = capsys.readouterr().out
    assert f"Left {KEYS[0]}: a training is building it now." in out
    assert [entry.key for entry in FeatureStore(directory).entries()] == [KEYS[0]]


def test_help(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["cache", "--help"])
    out = capsys.readouterr().out
    assert "List the feature caches" in out
    with pytest.raises(SystemExit, match="2"):
        main(["cash"])


def test_heavy_packages_are_not_imported() -> None:
    code = (
        "import sys; from anomalib_uniad.cli import main; main(['cache', 'ls', '--directory', '/not/there']);"
        "print([name for name in ('torch', 'anomalib', 'lightning', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["There are no feature caches in /not/there.", "[]"]


def test_subcommands_are_documented() -> None:
    for function in (cli.cache_ls, cli.cache_clear):
        assert "Args:" in function.__doc__
