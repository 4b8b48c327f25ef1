# SPDX-License-Identifier: Apache-2.0
"""Thresholds from images of known brightness, which is their score."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.errors import InputError
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.metrics.limits import KnownScores, limits
from anomalib_uniad.review.recalibrate import Change, recalibrate
from tiny_openvino import THRESHOLD, save_tiny

GOOD = (50, 52, 54, 55, 56, 58, 60)
DEFECTIVE = (100, 110, 120)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny(tmp_path / "model.xml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def grey(folder: Path, values: Sequence[int]) -> None:
    folder.mkdir(parents=True)
    for value in values:
        Image.fromarray(np.full((9, 9), value, np.uint8)).save(folder / f"{value}.png")


def test_one_threshold_for_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey(Path("new/ok"), GOOD)
    grey(Path("new/NG"), DEFECTIVE)
    grey(Path("new/unsorted"), (1, 2))
    main(["recalibrate", "model.xml", "new", "--output", "out/thresholds.yaml"])
    good, defective = (np.array(values) / 255 for values in (GOOD, DEFECTIVE))
    wanted = limits({"": KnownScores(good=good, defective=defective)})[""].threshold
    given = GivenThresholds.read(Path("out/thresholds.yaml"))
    assert given.everywhere == {"image": pytest.approx(wanted, rel=1e-6)}
    assert good.max() < wanted < defective.min() < THRESHOLD
    output = " ".join(capsys.readouterr().out.split())
    assert "│ all products │ 7 │ 3 │ 0.5 │" in output
    assert "│ 0 → 0 │ 3 → 0 │ fewest mistakes │" in output
    assert "2 of 12 images have no label." in output
    main(["predict", "model.xml", "new/NG", "--thresholds", "out/thresholds.yaml", "--output", "out"])
    rows = list(csv.DictReader(Path("out/predictions.csv").read_text().splitlines()))
    assert [row["decision"] for row in rows] == ["anomalous"] * 3


def test_products_labels_and_thresholds_so_far(folder: Path) -> None:
    """Folders with names of the model's categories; a file of labels; what is not found anew stays."""
    grey(Path("bottle/day"), (*GOOD, *DEFECTIVE))
    grey(Path("cable/good"), GOOD[:3])
    labels = [(f"bottle/day/{value}.png", "good" if value in GOOD else "defective") for value in (*GOOD, *DEFECTIVE)]
    with Path("labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *labels, ("cable/good/50.png", "")])
    so_far = {"bottle": {"image": 0.2, "pixel": 0.3}, "cable": {"pixel": 0.25}}
    Path("old.yaml").write_text(yaml.safe_dump({"global": {"image": 0.6}, "products": so_far}))
    changes = recalibrate(
        Path("model.xml"), [Path("bottle"), Path("cable")], Path("labels.csv"), Path("old.yaml"), 0.1, Path("new.yaml")
    )
    scores = KnownScores(good=np.array(GOOD) / 255, defective=np.array(DEFECTIVE) / 255)
    wanted = pytest.approx(limits({"": scores}, 0.1)[""].threshold, rel=1e-6)
    assert (changes["bottle"].old, changes["bottle"].new) == (0.2, wanted)
    cable = changes["cable"]
    assert (cable.old, cable.new, len(cable.good), cable.rule) == (0.8, 0.8, 2, "stays: fewer than 5 good images")
    given = GivenThresholds.read(Path("new.yaml"))
    assert given.products == {"bottle": {"image": wanted, "pixel": 0.3}, "cable": {"pixel": 0.25}}
    assert given.everywhere == {"image": 0.6}


def test_counts_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(0)
    change = Change(*(generator.integers(1, 9, 30).astype(float).tolist() for _ in range(2)))
    for threshold in np.arange(0.5, 9.5, 0.5):
        found = change.mistakes(threshold)
        assert found is not None
        assert found.false_alarms == sum(1 for score in change.good if score > threshold)
        assert found.missed == sum(1 for score in change.defective if not score > threshold)


def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey(Path("day"), GOOD)
    with pytest.raises(InputError, match=r"None of the 7 images has a label: put them into folders good and defective"):
        recalibrate(Path("model.xml"), [Path("day")])
    with pytest.raises(InputError, match=r"false_alarm_rate must be above 0 and below 0.5, got 1\."):
        recalibrate(Path("model.xml"), [Path("day")], false_alarm_rate=1)
    Path("there.yaml").touch()
    with pytest.raises(FileExistsError, match=r"there\.yaml would be overwritten"):
        recalibrate(Path("model.xml"), [Path("day")], output=Path("there.yaml"))
    Path("day/good").mkdir()
    Path("day/good/1.png").write_text("no image")
    with pytest.raises(InputError, match="No labelled image can be judged"):
        recalibrate(Path("model.xml"), [Path("day")])
    assert "day/good/1.png cannot be read" in capsys.readouterr().err
    assert not Path("thresholds.yaml").exists()


@pytest.mark.slow
def test_without_torch(folder: Path) -> None:
    grey(Path("new/good"), GOOD)
    code = (
        "from anomalib_uniad.cli import main; import sys\n"
        "main(['recalibrate', 'model.xml', 'new'])\n"
        "main(['predict', 'model.xml', 'new'])\n"
        "main(['review', 'predictions'])\n"
        "print([name for name in ('torch', 'anomalib', 'lightning') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert GivenThresholds.read(Path("thresholds.yaml")).everywhere["image"] > max(GOOD) / 255
    assert Path("review.html").is_file()
