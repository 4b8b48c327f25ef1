# SPDX-License-Identifier: Apache-2.0
"""That benchmarks/kills.py sees what a kill could leave; what kills do leave is in the integration tests."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kills import Place, Work, begin, contents, differences, half_written, start


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "inputs", tmp_path / "output")
    place.output.mkdir()
    return place


def files(place: Place) -> dict[str, Path]:
    paths = {
        name: place.output / name for name in ("a.png", "a.ckpt", "a.csv", "a.json", "a.jsonl", "a.yaml", "a.html")
    }
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(paths["a.png"])
    torch.save({"state_dict": {"weight": torch.ones(3)}}, paths["a.ckpt"])
    paths["a.csv"].write_text("path,score,seconds\nb,0.5,1\na,0.5,2\n")
    paths["a.json"].write_text('{"a": 1}\n')
    paths["a.jsonl"].write_text('{"a": 1}\n{"b": 2}\n')
    paths["a.yaml"].write_text("a: 1\n")
    paths["a.html"].write_text("<html></html>\n")
    return paths


def test_half_files_are_seen(place: Place) -> None:
    paths = files(place)
    assert half_written(Work(lambda _: None), place) == []
    for name, path in paths.items():
        content = path.read_bytes()
        path.write_bytes(content[: -500 if name == "a.png" else -3])
        assert half_written(Work(lambda _: None), place) == [name]
        path.write_bytes(content)
    (place.output / ".a.01234567.partial.json").write_text("{")
    assert half_written(Work(lambda _: None), place) == []


def test_parts_of_different_age_are_seen(place: Place) -> None:
    def older(place: Place) -> None:
        for name in ("model.bin", "model.dat"):
            (place.output / name).write_text("old")

    work = Work(lambda _: None, older, belonging=("model.*",))
    begin(work, place)
    assert half_written(work, place) == []
    (place.output / "model.bin").write_text("new")
    assert half_written(work, place) == ["model.bin and model.dat: not of one age"]
    (place.output / "model.dat").unlink()
    assert half_written(work, place) == []


def test_what_is_compared(place: Place) -> None:
    paths = files(place)
    work = Work(lambda _: None)
    before = contents(work, place)
    assert before.keys() == paths.keys()
    paths["a.csv"].write_text("path,score,seconds\na,0.5,3\nb,0.5,4\n")  # times, and another order
    torch.save({"state_dict": {"weight": torch.ones(3)}, "epoch": 3}, paths["a.ckpt"])
    assert differences(before, contents(work, place)) == []
    torch.save({"state_dict": {"weight": torch.ones(3) + 1e-7}}, paths["a.ckpt"])
    paths["a.csv"].write_text("path,score,seconds\na,0.5,3\n")
    paths["a.html"].unlink()
    (place.output / "b.txt").write_text("more")
    assert differences(before, contents(work, place)) == ["a.ckpt", "a.csv", "a.html", "b.txt"]


@pytest.mark.slow
def test_a_work_is_killed_when_it_should_be(place: Place) -> None:
    def run(place: Place) -> None:
        time.sleep(0.3)
        (place.output / "a.txt").write_text("begun")
        time.sleep(1)
        (place.output / "b.txt").write_text("ended")

    work = Work(run)
    begin(work, place)
    whole = start(work, place)
    assert (whole.code, len(contents(work, place))) == (0, 2)
    begin(work, place)
    assert start(work, place, 0.02).code is None
    assert not contents(work, place)
    killed = start(work, place, 0.01, after_first=True)
    assert killed.code is None
    assert list(contents(work, place)) == ["a.txt"]
    assert [path.name for path in place.output.iterdir()] == ["a.txt"]
