# SPDX-License-Identifier: Apache-2.0
"""Tables of the documentation come from the files in results/ and from docstrings."""

import re
from pathlib import Path

import pandas as pd
import pytest

import render_tables
from anomalib_uniad import CIFAR10, MetaFile, MultiCategory, UniAD
from render_tables import RESULTS, TABLES, main, render

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *([ROOT / "docs"] if (ROOT / "docs").is_dir() else [])]


def lines_of(name: str, results: Path) -> list[str]:
    """Lines of a table, without padding."""
    return [" ".join(line.split()) for line in TABLES[name](results).splitlines()]


def test_the_documentation_is_up_to_date() -> None:
    main(PAGES, check=True)


def test_every_table_is_shown_and_every_file_is_used() -> None:
    text = "\n".join(file.read_text() for path in PAGES for file in ([path] if path.is_file() else path.rglob("*.md")))
    shown = {match[3] for match in render_tables.BLOCK.finditer(text) if match[2] == "table"}
    assert shown == set(TABLES)
    used = {*TABLES, "added_before", "inference_profile"}
    assert {path.stem for path in RESULTS.glob("*.csv")} <= used


def test_scripts_that_results_name_are_there() -> None:
    named = set(
        re.findall(r"python (benchmarks/\w+\.py)(?: ([a-z]\w+)\b(?![./]))?", (RESULTS / "README.md").read_text())
    )
    assert len(named) > 8
    for script, subcommand in named:
        assert f"def {subcommand or Path(script).stem.replace('training', 'train')}(" in (ROOT / script).read_text()


def test_a_stale_page_is_found_and_rewritten(tmp_path: Path) -> None:
    page, other = tmp_path / "docs" / "model" / "page.md", tmp_path / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text("before\n<!-- arguments: UniAD -->\nSTALE ROW\n<!-- end -->\nafter\n")
    other.write_text("no table\n")
    paths = [other, tmp_path / "docs"]
    with pytest.raises(SystemExit, match=r"Not up to date: \S*page\.md; run: python tools/render_tables\.py"):
        main(paths, check=True)
    assert "STALE ROW" in page.read_text()
    main(paths)
    main(paths, check=True)
    text = page.read_text()
    assert text.startswith("before\n<!-- arguments: UniAD -->\n| argument |")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| `neighbor_size` | `7` |" in text
    assert "STALE ROW" not in text


def test_unknown_names_are_errors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- table: nothing -->\n<!-- end -->")
    with pytest.raises(ValueError, match=r"page\.md: There is no table 'nothing'; known are .*, added, backbones, "):
        main([page])
    with pytest.raises(ValueError, match="no class 'Nothing'"):
        render("<!-- arguments: Nothing -->\n<!-- end -->")
    with pytest.raises(FileNotFoundError, match=r"no .*quickstart\.csv"):
        render("<!-- table: quickstart -->\n<!-- end -->", tmp_path)


@pytest.mark.parametrize("cls", [UniAD, MultiCategory, MetaFile, CIFAR10])
def test_every_argument_is_documented(cls: type) -> None:
    rows = render_tables.arguments(cls).splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        meaning = row.split("|")[3].strip()
        assert len(meaning) > 10, row
        assert "Defaults to" not in meaning, row


def test_arguments_without_default() -> None:
    rows = render_tables.arguments(MetaFile).splitlines()
    assert rows[2].startswith("| `root` | required | Folder that")
    assert rows[3].startswith("| `train_meta` | `None` | Meta file")


def test_what_is_found_stands_beside_auroc(tmp_path: Path) -> None:
    """Files from before it was measured have no zeros, but a word that says why nothing is there."""
    old = {"category": "mean", "image_AUROC": 0.9, "pixel_AUROC": 0.8, "epochs": 3}
    new = {**old, "image_TPR@FPR2": 0.254, "image_TPR@FPR5": 0.5}
    for rows, heading, cells in (
        ([old], "in percent (found at 2 % / 5 % false alarms: not measured):", ["90.0 / 80.0"]),
        ([new], "images found at 2 % / 5 % false alarms, in percent:", ["90.0 / 80.0; 25 / 50"]),
        ([old, new], "in percent (not there: not measured):", ["90.0 / 80.0", "90.0 / 80.0; 25 / 50"]),
    ):
        named = [{"method": str(number), **row} for number, row in enumerate(rows)]
        pd.DataFrame(named).to_csv(tmp_path / "methods.csv", index=False)
        lines = lines_of("methods_products", tmp_path)
        assert lines[0].endswith(heading)
        assert [line.split(" | ")[1].rstrip(" |") for line in lines[4:]] == cells
    rows = [{"method": "A", "category": "mean", "seed": 0, "epochs": 1, "thresholds": "x", "image_AUROC": 0.6}]
    pd.DataFrame(rows).to_csv(tmp_path / "cifar10.csv", index=False)
    assert lines_of("cifar10", tmp_path)[-1] == "Empty cells of found at 2 % / 5 % false alarms: not measured."
    pd.DataFrame([{**rows[0], "image_TPR@FPR2": 0.1, "image_TPR@FPR5": 0.0}]).to_csv(tmp_path / "cifar10.csv")
    assert "| 60.0 | 10.0 | 0.0 | x |" in lines_of("cifar10", tmp_path)[-1]


def test_benchmarks(tmp_path: Path) -> None:
    """Accuracy of categories, what the row of the mean says about cost, and empty cells where nothing was measured."""
    cost = {"train_seconds": 90, "peak_memory": 2.5e9, "size_on_disk": 3.21e7, "latency_ms": 10.83, "models": 1}
    rows = [
        {
            "data": data,
            "method": f"{method}, Lite0",
            "mode": "unified",
            "seed": 0,
            "device": "a processor",
            "category": category,
            "kind": "mean" if category == "mean" else "category",
            "image_AUROC": image,
            "pixel_AUROC": 0.5,
            "image_TPR@FPR2": 0.25,
            "image_TPR@FPR5": 0.5,
            "image_AP": 0.7,
            **dict.fromkeys(("image_F1Max", "pixel_AP", "pixel_F1Max", "pixel_AUPRO"), 0.9),
            **(cost if category == "mean" and method == "A" else {}),
        }
        for data, method, image in (("1 product", "A", 0.25), ("3 products", "A", 0.3), ("3 products", "B", 0.75))
        for category in ("screw", "mean")
    ]
    for name in ("methods", "products", "images", "modes", "fast"):
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    measured = "1.5 | 2.5 | 32.1 | 10.8 |"
    lines = lines_of("methods_in_short", tmp_path)
    assert lines[0] == "Means over three products in percent. On a processor; seed 0."
    assert lines[4] == f"| A | 25.0 / 50.0 | 50.0 | {measured}"
    assert lines[6].replace(" ", "") == "|B|75.0/50.0|50.0|||||"
    assert lines_of("methods", tmp_path)[4].startswith(
        "| A, Lite0 | 25.0 | 70.0 | 90.0 | 50.0 | 90.0 | 90.0 | 90.0 | 25.0 |"
    )
    assert f"| 1 product | 25.0 / 50.0; 25 / 50 | {measured}" in lines_of("products", tmp_path)
    assert "| 3 products | 30.0 / 50.0; 25 / 50 | 75.0 / 50.0; 25 / 50 |" in lines_of("images", tmp_path)
    assert f"| unified, A, Lite0 | 1 | {measured}" in lines_of("modes", tmp_path)
    assert lines_of("fast", tmp_path)[-1] == "Minutes of training on a processor, with the features: 1.5, 1.5, nan."
    assert lines_of("curves", tmp_path) == ["Not measured yet."]


def test_cifar10(tmp_path: Path) -> None:
    final = {"method": "A", "category": "mean", "epochs": 20, "thresholds": "test images (same_as_test)"}
    rows = [{**final, "seed": seed, "image_AUROC": value} for seed, value in ((0, 0.64), (1, 0.66))]
    rows.append({**rows[0], "category": "CIFAR10", "image_AUROC": 0.1})
    rows.append({"method": "yardstick", "category": "mean", "image_AUROC": 0.55})
    pd.DataFrame(rows).to_csv(tmp_path / "cifar10.csv", index=False)
    epochs = [
        {"method": "A", "seed": seed, "epoch": epoch, "image_AUROC": 0.5 + seed / 10 + epoch / 100}
        for seed, epoch in ((0, 10), (0, 20), (1, 10))
    ]
    pd.DataFrame(epochs).to_csv(tmp_path / "cifar10_epochs.csv", index=False)
    lines = lines_of("cifar10", tmp_path)
    assert "| A | 20 | 0, 1 | 65.0 (64.0 to 66.0) | | | test images (same_as_test) |" in lines
    assert "| yardstick | | | 55.0 | | | |" in lines
    lines = lines_of("cifar10_epochs", tmp_path)
    assert "| epoch | A, seed 0 | A, seed 1 |" in lines
    assert lines[-2:] == ["| 10 | 60.0 | 70.0 |", "| 20 | 70.0 | |"]


def test_backbones(tmp_path: Path) -> None:
    common = {"backbone": "resnet18", "layers": "[1, 2]", "channels": 192, "backbone_parameters": 2.78e6, "width": 64}
    rows = [
        {**common, "height": 64, "padding_mode": "zeros", "openvino_difference": 1e-6},
        {**common, "height": 96, "padding_mode": "reflect", "openvino_difference": 2e-5},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "backbones.csv", index=False)
    expected = "| resnet18 | [1, 2] | 192 | 2.8 M | 64 x 64, 96 x 64 | zeros, reflect | 2e-05 |"
    assert lines_of("backbones", tmp_path)[-1] == expected


def test_quantization_and_parity(tmp_path: Path) -> None:
    changes = {"image_AUROC_change": -0.01, "pixel_AUROC_change": 0.002, "pixel_AUPRO_change": -0.03}
    changes |= {"image_AUROC_largest_change": -0.04, "pixel_AUROC_largest_change": 0.005}
    row = {"map_difference_max": 0.25, "map_difference_mean": 0.012, "size_bytes": 2.34e6, **changes}
    row |= {"images": 9, "categories": 3, "device": "a processor", "quantised": 50, "seconds": 12.3}
    one = {"variant": "as exported", "image_AUROC": 0.89, **row}
    pd.DataFrame([{**one, "backbone": "small"}, one]).to_csv(tmp_path / "quantization.csv", index=False)
    torch = {"precision": "FP32", "image_AUROC": 0.9, "pixel_AUROC": 0.8, "pixel_AUPRO": 0.7, "images": 9}
    rows = [{**torch, "categories": 3}, {"precision": "INT8_PTQ", "flipped_decisions": 2, **row}]
    pd.DataFrame(rows).to_csv(tmp_path / "industrial_parity.csv", index=False)
    cells = "2.5e-01 | 1.2e-02 | -0.0100 (-0.0400) | +0.0020 (+0.0050) | -0.0300"
    lines = lines_of("quantization", tmp_path)
    headings = [line for line in lines if line.endswith("s is processor time to quantise:")]
    assert [heading.startswith("small. Differences") for heading in headings] == [True, False]
    assert "on 9 test images of 3 categories, on a processor; torch has image AUROC 0.9000;" in headings[0]
    assert lines[-1] == f"| as exported | {cells} | 50 | 2.3 | 12 |"
    lines = lines_of("industrial_parity", tmp_path)
    assert "torch has image AUROC 0.9000, pixel AUROC 0.8000 and AUPRO 0.7000" in lines[0]
    assert lines[-1] == f"| INT8_PTQ | {cells} | 2 | 2.3 |"


def test_training_on_a_gpu_is_shown_once_it_was_measured(tmp_path: Path) -> None:
    block = "<!-- table: training_gpu -->\nold\n<!-- end -->"
    assert render(block, tmp_path) == "<!-- table: training_gpu -->\n<!-- end -->"
    row = {"batch_size": 64, "steps_per_second": 50.0, "minutes_for_1000_epochs": 19.0, "utilisation": 0.25}
    row |= {"peak_memory_bytes": 2e9, "matrix_gflop_per_second": 6e5, "images": 3629, "device": "a GPU"}
    pd.DataFrame([row, {**row, "compile_mode": "default"}]).to_csv(tmp_path / "training_gpu.csv", index=False)
    lines = lines_of("training_gpu", tmp_path)
    assert lines[0] == "On a GPU:"
    assert lines[4:6] == [
        "| 64 | none | 50.0 | 19.0 | 25.0% | 2.00 GB |",
        "| 64 | default | 50.0 | 19.0 | 25.0% | 2.00 GB |",
    ]


def test_metrics_that_need_too_much_say_so(tmp_path: Path) -> None:
    row = {"image_size": 32, "categories": 2, "device": "one", "category_bytes": 3 * 2**20, "images": 40}
    ours = {**row, "method": "per_category", "processor_seconds": 0.4, "ratio": 1.0, "peak_memory_bytes": 2**21}
    theirs = {**row, "method": "sklearn", "processor_seconds": 16.0, "ratio": 40.0, "peak_memory_bytes": 2**22}
    theirs |= {"difference": 1e-9, "difference_AUPRO": 0.0}
    too_much = {**row, "method": "anomalib", "note": "needs more than 12 GiB"}
    pd.DataFrame([too_much, theirs, ours]).to_csv(tmp_path / "evaluation_speed.csv", index=False)
    lines = lines_of("evaluation_speed", tmp_path)
    assert [line for line in lines if line.startswith("| scikit-learn")] == [
        "| scikit-learn, per category | 16 (40) |",
        "| scikit-learn, per category | 4 |",
    ]
    assert lines.count("| anomalib, all images pooled | needs more than 12 GiB |") == 2
    assert lines[4] == "| this package, per category | 0.4 (1) |"
    assert "| data of one category | 3 |" in lines
    assert lines[-1] == "Largest difference to scikit-learn: 0e+00 in AUPRO, 1e-09 in the other metrics."


def test_large_images_are_not_compared_with_small_ones(tmp_path: Path) -> None:
    common = {"round": 1, "backbone": "b", "image_size": 224, "device": "one"}
    rows = [
        {**common, "variant": "torch", "latency_ms": 100.0, "images_per_second": 10.0},
        {**common, "variant": "f32", "latency_ms": 25.0, "images_per_second": 40.0},
        {**common, "variant": "any_size_1024", "latency_ms": 50.0, "images_per_second": 20.0},
        {**common, "variant": "patchcore_10", "latency_ms": 800.0, "images_per_second": 1.25, "bank_vectors": 128},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "inference_speed.csv", index=False)
    lines = lines_of("inference_speed", tmp_path)
    assert "| UniAD, OpenVINO, f32 | 25 | 4 x | 40 | 4 x | 32 x |" in lines
    assert "| UniAD, OpenVINO, f32, file for any size, 1024 px | 50 | | 20 | | |" in lines
    assert "images of 224 px where no other size is given in memory" in lines[-1]
    assert lines[-1].endswith("Vectors in PatchCore's memory bank: 10 %: 128.")
    frame = pd.DataFrame([rows[0], {**rows[0], "device": "two"}]).assign(bank_vectors=float("nan"))
    frame.to_csv(tmp_path / "inference_speed.csv", index=False)
    lines = lines_of("inference_speed", tmp_path)
    assert [line for line in lines if line.startswith("On ")] == ["On one:", "On two:"]
    assert "memory bank" not in " ".join(lines)


def test_precisions_are_compared_round_by_round(tmp_path: Path) -> None:
    """On a machine that is busy half of the time, both halves say the same."""
    rows = [
        {"variant": name, "round": number, "processor_ms": busy * ms}
        for number, busy in ((1, 1), (2, 3))
        for name, ms in (("f32", 20.0), ("bf16", 10.0))
    ]
    frame = pd.DataFrame(rows).assign(device="one", backbone="b", image_size=256)
    frame.to_csv(tmp_path / "inference_precision.csv", index=False)
    lines = lines_of("inference_precision", tmp_path)
    assert lines[2].endswith("2 rounds in turn:")
    assert lines[-2:] == ["| f32 | 40.0 | 1 |", "| bf16 | 20.0 | 0.5 |"]


def test_floor_of_inference(tmp_path: Path) -> None:
    common = {"variant": "f32", "device": "one", "matrix_gflop_per_second": 100.0, "backbone": "b", "image_size": 224}
    rows = [
        {**common, "part": "head", "ms": 10.0, "operations": 0, "floor_ms": 0.0},
        {**common, "part": "whole", "ms": 40.0, "operations": 2e9, "floor_ms": 20.0},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "inference_floor.csv", index=False)
    lines = lines_of("inference_floor", tmp_path)
    assert lines[2] == "b, 224 px:"
    assert lines[6:8] == ["| head | 0.000 | 10.0 | 25% |", "| whole | 2.000 | 40.0 | 100% |"]
    assert lines[-1] == "Floor, all operations at the measured rate: in f32 20.0 ms, at 100 GFLOP/s of matrix products."
