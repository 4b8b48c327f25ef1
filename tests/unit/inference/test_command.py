# SPDX-License-Identifier: Apache-2.0
import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.image_files import look
from anomalib_uniad.inference import compiled, writer
from anomalib_uniad.inference.writer import Writer
from tiny_openvino import save_tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Dark and bright images of two categories, and the tiny model."""
    for category, values in {"bottle": (60, 120, 200), "cable": (120, 250)}.items():
        (tmp_path / "images" / category).mkdir(parents=True)
        for value in values:
            Image.fromarray(np.full((9, 12), value, np.uint8)).save(tmp_path / "images" / category / f"{value}.png")
    save_tiny(tmp_path / "model.xml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decisions(output: str = "predictions") -> dict[str, str]:
    rows = csv.DictReader((Path(output) / "predictions.csv").read_text().splitlines())
    return {row["path"].removeprefix("images/"): row["decision"] for row in rows}


def test_a_folder(folder: Path, capsys) -> None:
    main(["predict", "model.xml", "images", "--output", "out"])
    out, error = capsys.readouterr()
    assert out.startswith("5 images: 2 anomalous, 3 normal. ")
    wrote = "Wrote out/predictions.csv and predictions.jsonl, the folders out/heatmaps and out/masks."
    assert out.endswith(f" images per second.\n{wrote}\n")
    assert error == ""
    expected = {"bottle/60.png": "normal", "bottle/120.png": "normal", "bottle/200.png": "anomalous"}
    expected |= {"cable/120.png": "normal", "cable/250.png": "anomalous"}
    assert decisions("out") == expected
    heatmaps = Path("out/heatmaps")
    written = {path.relative_to(heatmaps).with_suffix(".png").as_posix() for path in heatmaps.rglob("*.jpg")}
    assert written == set(expected)
    dark, bright = (np.asarray(Image.open(heatmaps / "bottle" / name)).astype(int) for name in ("60.jpg", "200.jpg"))
    assert dark.shape == bright.shape == (22, 12, 3)  # with the scale and the line of text
    dark, bright = dark[1:8, 1:-1], bright[1:8, 1:-1]  # within the outline of the mask
    assert (dark[..., 2] > dark[..., 0]).all()
    assert (bright[..., 0] > bright[..., 2]).all()


def test_categories(folder: Path) -> None:
    """120 / 255 = 0.47 is above the threshold of bottle, 0.45, and not above that of cable, 0.8."""
    main(["predict", "model.xml", "images", "--category", "auto", "--heatmaps", "false"])
    found = decisions()
    assert (found["bottle/120.png"], found["cable/120.png"], found["cable/250.png"]) == (
        "anomalous",
        "normal",
        "anomalous",
    )
    assert not Path("predictions/heatmaps").exists()
    main(["predict", "model.xml", "images", "--category", "cable", "--output", "cable"])
    assert [name for name, decision in decisions("cable").items() if decision == "anomalous"] == ["cable/250.png"]


def test_an_image_without_a_category_stops_no_other(folder: Path, capsys) -> None:
    (folder / "images" / "loose.png").write_bytes((folder / "images" / "bottle" / "60.png").read_bytes())
    with pytest.raises(SystemExit, match="1"):
        main(["predict", "model.xml", "images", "--category", "auto", "--heatmaps", "false"])
    assert "No folder in the path images/loose.png has the name of a category" in capsys.readouterr().err
    assert decisions() == {
        "bottle/60.png": "normal",
        "bottle/120.png": "anomalous",
        "bottle/200.png": "anomalous",
        "cable/120.png": "normal",
        "cable/250.png": "anomalous",
        "loose.png": "",
    }


def test_broken_images(folder: Path, capsys) -> None:
    (folder / "images" / "bottle" / "070.png").write_text("[not] an image")
    with pytest.raises(SystemExit, match="1"):
        main(["predict", "model.xml", "images"])
    out, error = capsys.readouterr()
    assert "6 images: 2 anomalous, 3 normal, 1 failed." in out
    assert error.startswith("images/bottle/070.png cannot be read: it is no image")
    rows = list(csv.DictReader(Path("predictions/predictions.csv").read_text().splitlines()))
    assert [row["path"].rpartition("/")[2] for row in rows if row["error"]] == ["070.png"]
    assert len(rows) == 6


def test_a_pixel_a_row_and_a_column(folder: Path) -> None:
    for name, shape in {"pixel": (1, 1), "row": (1, 300), "column": (9000, 1)}.items():
        (folder / "small").mkdir(exist_ok=True)
        Image.fromarray(np.full(shape, 250, np.uint8)).save(folder / "small" / f"{name}.png")
    main(["predict", "model.xml", "small"])
    assert set(decisions().values()) == {"anomalous"}
    for name in ("pixel", "row", "column"):
        assert look(folder / "predictions" / "masks" / f"{name}.png").size == look(folder / f"small/{name}.png").size


def test_files_and_a_second_run(folder: Path, capsys) -> None:
    """Several sources; heatmaps of an earlier run inside of the folder are no images."""
    main(["predict", "model.xml", "images/cable/250.png", "images/bottle", "--output", "images"])
    assert list(decisions("images")) == ["cable/250.png", "bottle/120.png", "bottle/200.png", "bottle/60.png"]
    assert Path("images/heatmaps/250.jpg").is_file()
    assert Path("images/heatmaps/bottle/60.jpg").is_file()
    main(["predict", "model.xml", "images", "--output", "images", "--overwrite", "true"])
    assert capsys.readouterr().out.count("\n5 images: ") == 1


def test_without_thresholds(folder: Path, capsys) -> None:
    save_tiny(folder / "raw.xml", None, normalise=False)
    main(["predict", "raw.xml", "images"])
    assert "5 without a decision, because the model has no threshold" in capsys.readouterr().out
    assert set(decisions().values()) == {""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.xml", "images"], "There is no model gone.xml"),
        (["model.xml", "gone"], "There is no file or folder gone"),
        (["model.xml", "empty"], "The folder empty has no images"),
        (["model.xml", "images", "--output", "model.xml"], "model.xml is a file: give a folder"),
        (["model.xml", "images", "--device", "TPU"], "There is no device 'TPU'"),
        (
            ["model.xml", "images", "--category", "nut"],
            "no threshold of the category 'nut': it has those of bottle, cable",
        ),
        (["model.xml", "loose", "--category", "auto"], "No folder in the path loose/a.png has the name of a category"),
        (["damaged.xml", "images"], "damaged.xml: the metadata 'thresholds' is malformed"),
        (["model.xml", "images", "--workers", "-1"], "workers must be positive, or 0 for none, got -1."),
        (["model.xml", "images", "--workers", "2", "--watch", "true"], "in one process: leave out --workers"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], message: str, capsys) -> None:
    (folder / "empty").mkdir()
    (folder / "loose").mkdir()
    (folder / "loose" / "a.png").touch()
    damaged = (folder / "model.xml").read_text().replace("&quot;image&quot;: 0.5", "&quot;image&quot;: x")
    (folder / "damaged.xml").write_text(damaged)
    (folder / "damaged.bin").write_bytes((folder / "model.bin").read_bytes())
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *arguments])
    assert str(stopped.value).startswith("error: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert sorted(folder.rglob("*")) == before
    assert capsys.readouterr().out == ""


def test_interrupted(folder: Path, monkeypatch, capsys) -> None:
    """The rows until then are kept."""
    row = Writer.row
    count = iter(range(10))

    def interrupt(self, *arguments) -> None:
        row(self, *arguments)
        if next(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "row", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "model.xml", "images"])
    assert stopped.value.code == 130
    assert "Interrupted; the rows of the images until then are in the table." in capsys.readouterr().err
    assert len(decisions()) == 2


def test_resumed(folder: Path, capsys) -> None:
    """Rows that are there stay, one that is cut off is written again, and the table is that of one run."""
    main(["predict", "model.xml", "images", "--heatmaps", "false"])
    table, lines = Path("predictions/predictions.csv"), Path("predictions/predictions.jsonl")
    whole, whole_lines = table.read_text(), lines.read_text()
    rows = whole.splitlines(keepends=True)
    table.write_text("".join(rows[:3]) + rows[3][:20])
    capsys.readouterr()
    main(["predict", "model.xml", "images", "--heatmaps", "false", "--resume", "true"])
    assert capsys.readouterr().out.startswith("3 images: ")
    assert table.read_text() == whole
    assert lines.read_text() == whole_lines


def test_an_error_is_not_the_last_word(folder: Path, capsys) -> None:
    broken = folder / "images" / "broken.png"
    broken.touch()
    for resume in ("false", "true"):
        with pytest.raises(SystemExit, match="1"):
            main(["predict", "model.xml", "images", "--heatmaps", "false", "--resume", resume])
    Image.fromarray(np.full((9, 12), 60, np.uint8)).save(broken)
    capsys.readouterr()
    main(["predict", "model.xml", "images", "--heatmaps", "false", "--resume", "true"])
    assert capsys.readouterr().out.startswith("1 images: ")
    rows = list(csv.DictReader(Path("predictions/predictions.csv").read_text().splitlines()))
    assert [row["error"] for row in rows] == [""] * len(rows)
    assert len(Path("predictions/predictions.jsonl").read_text().splitlines()) == len(rows)


def test_a_heatmap_that_cannot_be_written(folder: Path, monkeypatch) -> None:
    draw = writer.draw_inspection
    full = iter([True, *[False] * 4])

    def save(*arguments):
        if next(full):
            raise OSError(28, "No space left on device")
        return draw(*arguments)

    monkeypatch.setattr(writer, "draw_inspection", save)
    with pytest.raises(SystemExit, match="1"):
        main(["predict", "model.xml", "images", "--threads", "1"])
    rows = list(csv.DictReader(Path("predictions/predictions.csv").read_text().splitlines()))
    failed = [row for row in rows if row["error"]]
    assert len(failed) == 1
    assert re.fullmatch(r"The heatmap of .*\.png cannot be written: \[Errno 28\] No space.*", failed[0]["error"])
    assert failed[0]["heatmap"] == ""
    assert all(row["decision"] and row["raw_score"] for row in rows)
    assert sum(bool(row["heatmap"]) for row in rows) == 4


def test_bfloat16(folder: Path, monkeypatch, capsys) -> None:
    for has in (True, False):
        monkeypatch.setattr(compiled, "computes_in_bf16", lambda _, has=has: has)
        main(["predict", "model.xml", "images", "--precision_hint", "bf16", "--overwrite", "true"])
        assert ("CPU cannot compute in bf16 here; the model runs in f32." in capsys.readouterr().err) != has
    main(["predict", "model.xml", "images", "--overwrite", "true"])
    assert "bf16" not in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    main(["predict", "model.xml", "images", "--output", "日本"])
    sys.stdout.seek(0)
    assert r"Wrote \u65e5\u672c/predictions.csv" in sys.stdout.read()


def test_heatmaps_need_a_map(folder: Path) -> None:
    import openvino as ov
    from openvino import opset13 as ops

    images = ops.parameter(ov.PartialShape([-1, 3, -1, -1]), np.float32)
    score = ops.reduce_max(images, ops.constant([1, 2, 3]))
    score.output(0).set_names({"pred_score"})
    ov.save_model(ov.Model([score], [images]), folder / "score.xml")
    with pytest.raises(SystemExit, match=r"error: score.xml puts out no anomaly map: .*--heatmaps false"):
        main(["predict", "score.xml", "images"])
    main(["predict", "score.xml", "images", "--heatmaps", "false"])
    assert len(decisions()) == 5


HEAVY = (
    "torch",
    "torchvision",
    "torchmetrics",
    "anomalib",
    "lightning",
    "timm",
    "pandas",
    "matplotlib",
    "scipy",
    "tqdm",
)
ENTRY = """
from importlib.metadata import entry_points
(entry,) = entry_points(group="console_scripts", name="anomalib-uniad")
entry.load()(["predict", "model.xml", "images"])
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)


def test_heavy_packages_are_not_imported(folder: Path) -> None:
    result = run(f"import sys{ENTRY}print([name for name in {HEAVY} if name in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
    assert len(decisions()) == 5


def test_heavy_packages_need_not_be_there(folder: Path) -> None:
    refuse = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""
    result = run(refuse + ENTRY)
    assert result.returncode == 0, result.stderr
    assert len(decisions()) == 5
    assert run(refuse + "import torch").returncode == 1


def test_without_openvino(folder: Path) -> None:
    result = run(f"import sys; sys.modules['openvino'] = None{ENTRY}")
    assert result.returncode == 1
    assert result.stderr == "error: openvino is not installed: pip install openvino\n"
