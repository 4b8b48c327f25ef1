# SPDX-License-Identifier: Apache-2.0
"""Report of a benchmark: tables, pictures, page."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from anomalib_uniad.benchmark.results import write
from anomalib_uniad.cli import main
from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError
from anomalib_uniad.report.benchmark import is_benchmark, read_benchmark
from anomalib_uniad.report.benchmark_plots import draw
from anomalib_uniad.report.benchmark_report import write_benchmark_report
from benchmark_folders import write_training


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    output = tmp_path / "benchmark"
    validations = [
        {"epoch": n, "seconds": 60.0 * n, "train_loss": 2.0 / n, "image_AUROC": value}
        for n, value in ((1, 0.6), (2, 0.8), (3, 0.7))
    ]
    trainings = []
    for method, offset in (("A <$x$>", 0.0), ("B", 0.1)):
        for seed in (0, 1):
            values = {"bolt": (0.5 + offset, 0.6), "nut": (0.7 + offset + seed / 10, 0.6)}
            course = validations if method == "B" else []
            cost = {"train_seconds": 100.0 + 1000 * offset, "validations": course}
            trainings.append(write_training(output, ("d", method, "unified", seed), values, **cost))
            trainings += [
                write_training(output, ("d", method, "separate", seed), {name: pair}) for name, pair in values.items()
            ]
    write(trainings, output, "anomalib-uniad benchmark x.yaml")
    return output


def test_tables(folder: Path, tmp_path: Path) -> None:
    assert is_benchmark(folder)
    files = write_benchmark_report(folder, tmp_path / "report")
    pictures = ["d-cost.png", "d-modes.png", "d-seeds.png", "d-time.png", "d-loss.png"]
    assert [file.name for file in files] == ["report.md", "report.csv", "report.html", *pictures]
    lines = [" ".join(line.split()) for line in files[0].read_text().splitlines()]
    head = "| method | mode | image AUROC | pixel AUROC | models | training | memory | on disk | one image | images/s |"
    assert head in lines
    cost = "| 0.0 GB | **0.0 MB** | 5.0 ms | 200.0 |"
    assert f"| A &lt;$x$&gt; | unified | 62.5 (60.0 to 65.0) | 60.0 | **1** | 1.7 min {cost}" in lines
    assert f"| B | unified | **72.5 (70.0 to 75.0)** | 60.0 | **1** | 3.3 min {cost}" in lines
    low, high = "75.0 (70.0 to 80.0)", "**85.0 (80.0 to 90.0)**"
    assert f"| nut | {low} | {low} | {high} | {high} |" in lines
    table = pd.read_csv(files[1]).set_index(["method", "mode"])
    row = table.loc[("B", "unified")]
    assert row[["image_AUROC", "image_AUROC_min", "image_AUROC_max", "train_seconds"]].tolist() == pytest.approx(
        [0.725, 0.7, 0.75, 200.0]
    )
    assert table.loc[("A <$x$>", "separate"), "models"] == 2
    page = files[2].read_text()
    assert "A &lt;$x$&gt;" in page
    assert "<$x$>" not in page
    assert page.count("data:image/png") == 5
    for file in files[3:]:
        with Image.open(file) as image:
            assert min(image.size) > 200


def test_where_the_loss_falls_and_the_metric_with_it(folder: Path) -> None:
    figure = draw(read_benchmark(folder), "d")["loss"]
    loss, metric = figure.axes  # one panel, of the only method that was validated more than once
    assert loss.get_title() == "B\nimage AUROC 80.0 at epoch 2, 70.0 at the end"
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0, pytest.approx(2 / 3)]] * 2  # two seeds
    assert list(metric.lines[0].get_ydata()) == pytest.approx([60, 80, 70])


def test_loss_of_a_method_without_the_first_metric(tmp_path: Path) -> None:
    trainings = [
        write_training(
            tmp_path / "b",
            ("d", method, "unified", 0),
            {"bolt": (0.5, 0.5)},
            validations=[{"epoch": n, "seconds": 60.0 * n, "train_loss": 1.0 / n, metric: 0.5} for n in (1, 2)],
        )
        for method, metric in (("A", "image_AUROC"), ("B", "pixel_AUROC"))
    ]
    write(trainings, tmp_path / "b", "command")
    titles = [axes.get_title() for axes in draw(read_benchmark(tmp_path / "b"), "d")["loss"].axes]
    assert titles[:2] == ["A\nimage AUROC 50.0 at epoch 1, 50.0 at the end", "B"]


def test_each_of_many_methods_has_its_own_colour(tmp_path: Path) -> None:
    trainings = [write_training(tmp_path, ("d", f"M{n}", "unified", 0), {"bolt": (0.5, 0.5)}) for n in range(12)]
    write(trainings, tmp_path, "command")
    (legend,) = draw(read_benchmark(tmp_path), "d")["cost"].legends
    assert len({handle.get_color() for handle in legend.legend_handles}) == 12


def test_what_there_is_nothing_to_draw_for_is_left_out(tmp_path: Path) -> None:
    values = {"bolt": (0.5, None)}
    training = write_training(tmp_path / "b", ("d", "A", "unified", 0), values, size_on_disk=None)
    write([training], tmp_path / "b", "command")
    files = write_benchmark_report(tmp_path / "b", tmp_path / "report", ["image_AUROC"])
    assert [file.name for file in files[3:]] == ["d-cost.png"]
    assert "pixel" not in files[0].read_text()


def test_the_command(folder: Path, tmp_path: Path, capsys) -> None:
    main(["report", str(folder), "--output", str(tmp_path / "r"), "--metrics", "[pixel_AUROC]"])
    assert f"Wrote {tmp_path / 'r' / 'd-cost.png'}." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is a benchmark: report it alone"):
        main(["report", str(folder), str(folder), "--output", str(tmp_path / "r2")])


def test_published_numbers(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "published.csv"
    file.write_text(
        "data,method,mode,category,image_AUROC,source\n"
        "d,B,unified,nut,0.9,a paper\nd,B,unified,mean,0.7,a paper\nd,B,unified,pin,0.1,a paper\nd2,B,unified,mean,0,\n"
    )
    text = write_benchmark_report(folder, tmp_path / "report", published=file)[0].read_text()
    assert "### B, unified, beside published numbers (a paper)" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| category | image AUROC | published | difference |" in lines
    assert "| nut | 85.0 | 90.0 | -5.0 |" in lines
    assert "| mean | 72.5 | 70.0 | +2.5 |" in lines
    file.write_text("data,method,mode,category\nd,C,unified,mean\n")
    with pytest.raises(
        InputError, match=r"has nothing that the benchmark has, but none of its metrics of d, C, unified"
    ):
        write_benchmark_report(folder, tmp_path / "r", published=file)
    for text, message in (
        ("image_AUROC\nd,B,unified,mean,96.5", "image_AUROC must be numbers from 0 to 1, got 96.5"),
        ("image_AUROC\nd,B,unified,mean,96 %", "image_AUROC must be numbers from 0 to 1, got 96 %"),
        ("image_AUROC\nd,B,unified,pin,0.9", "has nothing that the benchmark has, but image_AUROC of d, B, unified"),
    ):
        file.write_text(f"data,method,mode,category,{text}\n")
        with pytest.raises(InputError, match=message):
            write_benchmark_report(folder, tmp_path / "r", published=file)
    file.write_text("")
    with pytest.raises(InputError, match=r"published\.csv is not a table: No columns"):
        write_benchmark_report(folder, tmp_path / "r", published=file)
    file.write_text("data,method\n")
    with pytest.raises(InputError, match=r"published\.csv lacks the column mode, category\."):
        write_benchmark_report(folder, tmp_path / "r", published=file)
    with pytest.raises(MissingFileError, match="no file absent with published numbers"):
        write_benchmark_report(folder, tmp_path / "r", published=Path("absent"))
    paper = pd.read_csv(Path(__file__).parents[3] / "configs/benchmark/published.csv")
    paper = paper[(paper["data"] == "MVTecAD") & (paper["method"] == "UniAD") & (paper["mode"] == "unified")]
    for name, mean in (("image_AUROC", 0.965), ("pixel_AUROC", 0.968)):
        assert paper[name].iloc[:-1].mean() == pytest.approx(mean, abs=6e-4)
        assert paper[name].iloc[-1] == mean


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no metric image_AP: choose from image_AUROC, pixel_AUROC"):
        write_benchmark_report(folder, tmp_path / "r", ["image_AP"])
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "d-cost.png").touch()
    with pytest.raises(ExistingFileError, match=r"d-cost\.png would be overwritten"):
        write_benchmark_report(folder, tmp_path / "r")
    write_benchmark_report(folder, tmp_path / "r", overwrite=True)
    table = folder / "results.csv"
    table.write_text(table.read_text().replace("latency_ms", "latency"))
    with pytest.raises(InputError, match=r"results\.csv is damaged: it has no column latency_ms"):
        write_benchmark_report(folder, tmp_path / "r", overwrite=True)
