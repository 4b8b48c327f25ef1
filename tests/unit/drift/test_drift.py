# SPDX-License-Identifier: Apache-2.0
import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from anomalib_uniad.cli import main
from anomalib_uniad.drift.predictions import read_predictions
from anomalib_uniad.drift.statistics import GoodScores, compare
from anomalib_uniad.inference.compiled import read_metadata
from anomalib_uniad.inference.writer import COLUMNS
from anomalib_uniad.metrics.limits import KnownScores, limits
from tiny_openvino import NORMALISED, save_tiny

SPREAD = 0.25


def production(generator: np.random.Generator, count: int, defects: float = 0.0, moved: float = 0.0) -> np.ndarray:
    """Log-normal scores of which some are of defects, moved by so many spreads."""
    scores = np.exp(generator.normal(1.0 + moved * SPREAD, SPREAD, count))
    return np.where(generator.random(count) < defects, scores * generator.uniform(1.5, 5, count), scores)


def warnings(
    good: int, count: int, defects: float, moved: float = 0.0, runs: int = 600, reference: bool = False
) -> float:
    """Share of productions with a warning, of all images or of the last 50."""
    generator = np.random.default_rng(int(1000 * defects) + good + count)
    warned = 0
    for _ in range(runs):
        known = production(generator, good, defects if reference else 0.0)
        limit = limits({"nut": KnownScores(good=known)})["nut"]
        usual = GoodScores.of_reference(known) if reference else GoodScores.of_calibration(limit.good_scores)
        scores = production(generator, count, defects, moved)
        windows = (("all", scores), ("last", scores[-50:]))
        found = [
            compare("nut", name, window, int((window > limit.threshold).sum()), usual, limit.threshold)
            for name, window in windows
        ]
        warned += any(one.drift for one in found)
    return warned / runs


@pytest.mark.parametrize("defects", [0.0, 0.1])
@pytest.mark.parametrize(("good", "count"), [(5, 50), (20, 20), (20, 500), (100, 50)])
def test_false_warnings_are_rare(good: int, count: int, defects: float) -> None:
    assert warnings(good, count, defects) <= 0.01


@pytest.mark.parametrize("defects", [0.0, 0.1])
def test_false_warnings_against_a_reference_are_rare(defects: float) -> None:
    for good in (20, 200):
        assert warnings(good, 200, defects, runs=500, reference=True) <= 0.01


def test_what_50_images_find() -> None:
    """From 20 good images of the calibration, in spreads; a spread of 0.25 is 28 % in the score."""
    assert warnings(20, 50, 0.0, moved=2.0, runs=200) > 0.95
    assert warnings(20, 50, 0.0, moved=-1.5, runs=200) > 0.9
    assert warnings(100, 50, 0.0, moved=1.0, runs=200) > 0.7


def test_the_statistic_by_hand() -> None:
    good = GoodScores(middle=1.0, spread=0.2, error=0.1, freedom=50.0)
    scores = np.exp(np.linspace(0.9, 1.3, 41))
    found = compare("nut", "all", scores, 3, good, threshold=None, defects=0.0, chance=0.001)
    assert found.times == pytest.approx(np.exp(0.1))
    far = stats.t.isf(0.001, 50) * 0.2 * (np.pi / 2 / 41 + 0.01) ** 0.5
    assert (found.lowest, found.highest) == pytest.approx((np.exp(-far), np.exp(far)))
    assert (found.drift, found.most) == ("", 41)
    assert compare("nut", "all", 2 * scores, 3, good, None).drift == "higher"
    assert compare("nut", "all", scores / 2, 3, good, None).drift == "lower"
    assert compare("nut", "all", scores, 20, good, threshold=9.0).drift == "anomalous"


def write(file: Path, products: dict[str, np.ndarray], threshold: float, unknown: int = 0, model: str = "") -> Path:
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, COLUMNS)
        table.writeheader()
        for name, scores in products.items():
            for score in scores:
                decision = "anomalous" if score > threshold else "normal"
                row = {"category": name, "raw_score": score, "threshold": threshold, "decision": decision}
                table.writerow({"path": "a.png", "model": model, **row})
        for _ in range(unknown):
            table.writerow({"path": "a.png", "raw_score": 9.0, "decision": "unknown", "model": model})
        table.writerow({"path": "b.png", "error": "b.png is damaged."})
    return file


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    measured = {"middle": float(np.exp(1.0)), "images": 30.0, "spread": SPREAD, "freedom": 29.0}
    metadata = replace(NORMALISED, good_scores={"screw": measured, "nut": measured})
    return save_tiny(tmp_path / "model.xml", metadata)


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    digest = read_metadata(model)[1]
    first = {"screw": production(generator, 100, 0.05), "nut": production(generator, 150, 0.05), "pin": np.ones(3)}
    write(Path("a.csv"), first, 6.0, unknown=2, model=digest)
    main(["drift", "a.csv", "--model", "model.xml"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nut: scores of the last 50 images are ")
    assert ", no drift (0." in lines[0]
    assert lines[1] == "pin: nothing is known of its good scores; give --reference with 10 of its images."
    assert lines[3].startswith("2 of the last 50 images show no product that the model knows, no drift")
    late = production(generator, 60, moved=np.log(2.5) / SPREAD)
    write(Path("b.csv"), {"screw": late, "nut": production(generator, 60)}, 6.0, unknown=40, model=digest)
    with pytest.raises(SystemExit) as ended:
        main(["drift", "a.csv", "b.csv", "--model", "model.xml", "--overwrite", "true"])
    assert ended.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    times = np.exp(np.median(np.log(late[-50:])) - 1)
    assert lines[2] == (
        f"screw: scores of the last 50 images are {times:.3g} times as high as good ones were at calibration: look at "
        f"focus, light and position of the camera before trusting its {(late[-50:] > 6).sum()} anomalous ones."
    )
    assert "no drift" in lines[0]
    assert "40 of the last 50 images show no product" in lines[3]
    assert "look at focus, light and position of the camera" in lines[3]
    rows = list(csv.DictReader(Path("drift/drift.csv").read_text().splitlines()))
    assert [(row["product"], row["window"], row["images"], row["drift"]) for row in rows] == [
        ("nut", "all", "210", ""),
        ("nut", "last", "50", ""),
        ("screw", "all", "160", "higher"),
        ("screw", "last", "50", "higher"),
        ("unknown products", "all", "415", ""),
        ("unknown products", "last", "50", "unknown"),
    ]
    with Image.open("drift/drift.png") as picture:
        assert picture.width > 1000


def test_a_reference_in_the_place_of_a_calibration(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(1)
    write(Path("good.csv"), {"": production(generator, 100)}, 6.0)
    write(Path("now.csv"), {"": production(generator, 100)}, 6.0)
    main(["drift", "now.csv", "--reference", "good.csv"])
    assert "All: scores of the last 50 images are" in capsys.readouterr().out
    write(Path("now.csv"), {"": production(generator, 100, moved=-2)}, 6.0)
    with pytest.raises(SystemExit, match="3"):
        main(["drift", "now.csv", "--reference", "good.csv", "--overwrite", "true"])
    assert "than good ones" not in (out := capsys.readouterr().out)
    assert "good ones were in good.csv: defects may be missed" in out


def test_few_images(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("a.csv"), {"nut": np.ones(9)}, 6.0)
    main(["drift", "a.csv", "--model", "model.xml"])
    assert "nut: 9 images are too few to tell, 10 are needed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.csv", "--model", "model.xml"], "There is no file gone.csv: give the predictions.csv"),
        (["a.csv"], "Nothing is known of the good scores of nut: no model is given; give --model"),
        (["a.csv", "--model", "old.xml"], "old.xml does not have those of its calibration"),
        (["a.csv", "--model", "gone.xml"], "There is no model gone.xml"),
        (["a.csv", "--model", "other.xml"], "a.csv, other.xml belong to different models"),
        (["a.csv", "b.csv", "--model", "model.xml"], "a.csv, b.csv are from several models"),
        (["a.csv", "--model", "model.xml", "--window", "5"], "window must be at least 10, got 5"),
        (["a.csv", "--model", "model.xml", "--defects", "0.5"], "defects must be at least 0 and less than 0.5"),
        (["table.csv", "--model", "model.xml"], "table.csv is no predictions.csv .*: it has no category"),
        (["words.csv", "--model", "model.xml"], "words.csv: line 2 has 'high' in the place of a number"),
        (["cut.csv", "--model", "model.xml"], "cut.csv is damaged: line 3 has not one cell for each column"),
        (["open.csv", "--model", "model.xml"], "open.csv is damaged: unexpected end of data"),
        (["infinite.csv", "--model", "model.xml"], "infinite.csv: no row has a raw_score"),
        (["empty.csv", "--model", "model.xml"], "empty.csv: no row has a raw_score"),
        (["a.csv", "--model", "model.xml", "--output", "a.csv"], "a.csv is a file: give a folder"),
    ],
)
def test_mistakes(model: Path, arguments: list[str], message: str) -> None:
    save_tiny(Path("old.xml"))
    save_tiny(Path("other.xml"), replace(NORMALISED, version="2"))
    write(Path("a.csv"), {"nut": np.ones(20)}, 6.0, model=read_metadata(model)[1] if "old.xml" not in arguments else "")
    write(Path("b.csv"), {"nut": np.ones(20)}, 6.0, model="0")
    write(Path("empty.csv"), {}, 6.0)
    Path("table.csv").write_text("a,b\n1,2\n")
    Path("words.csv").write_text("category,raw_score,threshold,decision\nnut,high,1,normal\n")
    Path("cut.csv").write_text("category,raw_score,threshold,decision\nnut,1,1,normal\nnut,1")
    Path("open.csv").write_text('category,raw_score,threshold,decision\nnut,1,1,normal\n"nut,1,1,normal\n')
    Path("infinite.csv").write_text("category,raw_score,threshold,decision\nnut,1e400,1,normal\nnut,nan,1,normal\n")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main(["drift", *arguments])
    assert not Path("drift").exists()


def test_a_table_saved_by_a_spreadsheet(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("category,raw_score,threshold,decision\r\nnut,1,2,normal\r\n", encoding="utf-8-sig", newline="")
    assert read_predictions([table]).products["nut"].scores == [1.0]


@pytest.mark.slow
def test_no_torch(model: Path) -> None:
    write(Path("a.csv"), {"nut": np.exp(np.random.default_rng(0).normal(1, SPREAD, 30))}, 6.0)
    code = (
        "import sys; from anomalib_uniad.cli import main; main(['drift', 'a.csv', '--model', 'model.xml'])\n"
        "print([name for name in ('torch', 'anomalib', 'lightning', 'torchmetrics') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_false_warnings_are_rare_where_the_spread_is_from_other_products_too() -> None:
    """Three good images of each of six products, of which unseen ones rise more or less."""
    generator = np.random.default_rng(0)
    warned = 0
    for _ in range(60):
        rises = generator.uniform(0, 2.5, 6)

        def unseen(rise: float, count: int, defects: float = 0.0) -> np.ndarray:
            return production(generator, count, defects, moved=rise)

        known = {str(row): KnownScores(production(generator, 60), unseen(rise, 3)) for row, rise in enumerate(rises)}
        for limit, rise in zip(limits(known).values(), rises, strict=True):
            scores = unseen(rise, 50, 0.1)
            good = GoodScores.of_calibration(limit.good_scores)
            count = int((scores > limit.threshold).sum())
            warned += bool(compare("nut", "all", scores, count, good, limit.threshold).drift)
    assert warned <= 0.01 * 60 * 6
