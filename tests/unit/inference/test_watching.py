# SPDX-License-Identifier: Apache-2.0
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.inference import watching
from anomalib_uniad.inference.watching import arrivals
from anomalib_uniad.inference.writer import COLUMNS
from tiny_openvino import NORMALISED, save_tiny

COMMAND = [sys.executable, "-c", "from anomalib_uniad.cli import main; main()", "predict", "model.xml", "in"]


def png(value: int = 60) -> bytes:
    data = BytesIO()
    Image.fromarray(np.full((9, 12), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny(tmp_path / "model.xml")
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows() -> list[dict[str, str]]:
    file = Path("predictions/predictions.csv")
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


def start(*more: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "--watch", "true", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out, error


class Watch:
    """Names of the images in the order in which they are given out, in the background."""

    def __init__(self, folder: Path, judged: set[str]) -> None:
        self.names: list[str] = []
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder, judged))
        self._thread.start()

    def _run(self, folder: Path, judged: set[str]) -> None:
        for files in arrivals([folder], judged, self.stop):
            self.names += [file.name.as_posix() for file in files]

    def close(self) -> None:
        self.stop.set()
        self._thread.join(60)


@pytest.fixture
def watch(folder: Path) -> Iterator[Callable[[], Watch]]:
    opened = []

    def open_one(*judged: Path) -> Watch:
        opened.append(Watch(folder, {str(path.absolute()) for path in judged}))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_what_is_there_and_what_arrives(folder: Path, watch) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(png())
    seen = watch(folder / "b.png")
    wait_for(lambda: seen.names == ["a.png"])
    moved = folder.parent / "moved"
    moved.mkdir()
    for name in ("d.png", "e.txt"):
        (moved / name).write_bytes(png())
    moved.rename(folder / "new")  # a folder with files in it
    (folder.parent / "temporary").write_bytes(png())
    (folder.parent / "temporary").rename(folder / "c.png")
    wait_for(lambda: sorted(seen.names) == ["a.png", "c.png", "new/d.png"])
    (folder / "a.png").write_bytes(png(200))
    (folder / "predictions" / "heatmaps").mkdir(parents=True)
    (folder / "predictions" / "predictions.csv").touch()
    (folder / "predictions" / "heatmaps" / "a.jpg").write_bytes(png())
    (folder / ".hidden.png").write_bytes(png())
    (folder / "f.png").write_bytes(png())
    wait_for(lambda: "f.png" in seen.names)
    assert len(seen.names) == 4


def test_files_that_are_being_written_that_stay_broken_and_that_disappear(folder: Path, watch, monkeypatch) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 2.5)
    (folder / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Path | str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    seen = watch()
    data = png()
    for name in ("half", "gone", "broken"):
        (folder / f"{name}.png").write_bytes(data[:40])
    (folder / "empty.png").touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "not there")
    (folder / "whole.png").write_bytes(data)
    wait_for(lambda: "whole.png" in seen.names)
    assert set(seen.names) <= {"whole.png", "locked"}
    (folder / "gone.png").unlink()
    with (folder / "half.png").open("ab") as file:
        file.write(data[40:])
    wait_for(lambda: len(seen.names) == 7)
    seen.names.remove("locked")  # which was there before
    assert seen.names[1] == "half.png"
    assert sorted(seen.names[2:]) == ["broken.png", "empty.png", "link.png", "pipe.png"]


def test_each_image_once_also_after_kill_and_restart(folder: Path) -> None:
    names = [f"{number:03}.png" for number in range(60)]
    for name in names[:40]:
        (folder / name).write_bytes(png())
    process = start()
    wait_for(lambda: len(rows()) >= 3)
    process.kill()
    process.communicate()
    before = len(rows())
    with Path("predictions/predictions.csv").open("ab") as table:
        table.write(b'in/045.png,,0.2,"cut off\n')
    process = start()
    for name in names[40:]:
        (folder / name).write_bytes(png())
    (folder / "broken.png").write_bytes(png()[:50])
    wait_for(lambda: len(rows()) == 60)
    out, error = end(process)
    assert f"{60 - before} images: 0 anomalous, {60 - before} normal. Stopped." in out
    assert error == ""
    counts = Counter(row["path"] for row in rows())
    assert counts == dict.fromkeys([f"in/{name}" for name in names], 1)
    assert all(Path("predictions", row[kind]).is_file() for row in rows() for kind in ("heatmap", "mask"))
    lines = Path("predictions/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [row["path"] for row in rows()]


def test_ctrl_c_and_a_folder_without_images(folder: Path) -> None:
    process = start("--heatmaps", "false")
    wait_for(lambda: Path("predictions/predictions.csv").exists())
    out, _ = end(process, signal.SIGINT)
    assert "0 images: 0 anomalous, 0 normal. Stopped." in out


@pytest.mark.parametrize(
    "table",
    [
        ",".join(COLUMNS) + "\n" + "in/a.png,,,,,,,,,,other,model,\n",
        "someone's,own,table\n",
        "without an end",
    ],
)
def test_tables_of_others_are_left_alone(folder: Path, table: str) -> None:
    Path("predictions").mkdir()
    Path("predictions/predictions.csv").write_text(table)
    with pytest.raises(SystemExit, match="is not of this model and these thresholds: choose another output folder"):
        main([*COMMAND[3:], "--watch", "true"])
    assert Path("predictions/predictions.csv").read_text() == table


def test_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in (("gone", "There is no folder gone to watch"), ("model.xml", "model.xml is a file: with")):
        with pytest.raises(SystemExit, match=message):
            main(["predict", "model.xml", path, "--watch", "true"])
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(SystemExit, match=r"watchfiles is not installed: pip install 'anomalib-uniad\[watch\]'"):
        main(["predict", "model.xml", "in", "--watch", "true"])


def test_a_category_that_an_image_lacks_stops_nothing(folder: Path) -> None:
    assert NORMALISED.categories == ("bottle", "cable")
    (folder / "bottle").mkdir()
    process = start("--category", "auto")
    wait_for(lambda: Path("predictions/predictions.csv").exists())
    (folder / "a.png").write_bytes(png())
    wait_for(lambda: len(rows()) == 1)
    (folder / "bottle" / "a.png").write_bytes(png())
    wait_for(lambda: len(rows()) == 2)
    end(process)
    assert [(row["category"], bool(row["error"])) for row in rows()] == [("", True), ("bottle", False)]
