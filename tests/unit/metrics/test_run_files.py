# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pandas as pd
import pytest
from anomalib.post_processing import PostProcessor

from anomalib_uniad.errors import ExistingFileError
from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.run_files import COUNTS, RunFiles, describe_run, for_people
from replay import METRICS, make_batch, mixed, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

DEFAULT = list(METRICS)


def test_undefined_metrics_are_left_out(tmp_path):
    batches = [
        make_batch(["a"] * 4, [0, 1, 1, 0], 1),
        make_batch(["normal"] * 3, [0, 0, 0], 2),
        make_batch(["defective"] * 3, [1, 1, 1], 3),
        make_batch(["unmasked"] * 4, [0, 1, 1, 0], 4, masks=False),
    ]
    results = run(PerCategoryEvaluator(), batches, tmp_path)
    assert {name for name in results if name.startswith("image_AUROC/")} == {"image_AUROC/a", "image_AUROC/unmasked"}
    assert {name for name in results if name.startswith("pixel_AUROC/")} == {"pixel_AUROC/a", "pixel_AUROC/defective"}
    assert results["image_AUROC"] == pytest.approx((results["image_AUROC/a"] + results["image_AUROC/unmasked"]) / 2)
    frame = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False).set_index("category")
    assert list(frame.index) == ["a", "defective", "normal", "unmasked", "mean"]
    assert frame.note["a"] == ""
    image, pixel = (", ".join(name for name in DEFAULT if name.startswith(level)) for level in ("image", "pixel"))
    assert frame.note["defective"] == f"{image}: only defective test images"
    assert frame.note["normal"] == f"{', '.join(DEFAULT)}: no defective test images"
    assert frame.note["unmasked"] == f"{pixel}: no masks"
    assert frame.note["mean"] == f"{', '.join(DEFAULT)}: over 2 of 4 categories"
    assert frame.image_AUROC["normal"] == ""


def test_nothing_is_defined(tmp_path):
    assert run(PerCategoryEvaluator(), [make_batch(["a", "b"], [0, 0], 1)], tmp_path) == {}
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert frame[DEFAULT].isna().all(axis=None)
    assert frame.note.str.endswith(("no defective test images", "over 0 of 2 categories")).all()
    assert frame.false_alarms.tolist()[-1] == frame.false_alarms[:2].sum()


def test_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setattr("sys.argv", ["/usr/bin/anomalib", "test", "--data.root", "my data"])
    results = run(PerCategoryEvaluator(), mixed(), tmp_path)
    frame = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
    assert list(frame) == [
        *(
            "category",
            *DEFAULT,
            "note",
            "kind",
            *COUNTS,
            "threshold_rule",
            "model",
            "dataset",
            "epochs",
            "thresholds",
            "decisions",
            "pixel_resolution",
        ),
        *("scores", "seed", "device", "versions", "command"),
    ]
    assert list(frame.category) == ["a", "b", "c", "mean"]
    assert frame.image_AUROC[0] == pytest.approx(results["image_AUROC/a"], abs=1e-7)  # logged in single precision
    assert frame.pixel_F1Score[3] == pytest.approx(results["pixel_F1Score"], abs=1e-7)
    assert (frame.pixel_resolution == "model 8 x 8").all()
    assert (frame.seed == 7).all()
    assert (frame.model == "Replay").all()
    assert (frame.device == "cpu").all()
    assert (frame.epochs == "").all()
    assert (frame.thresholds == "none").all(), "this model has none"
    assert (frame.command == "anomalib test --data.root 'my data'").all()
    assert frame.versions[0].startswith("anomalib 2.7")
    markdown = (tmp_path / "metrics.md").read_text().splitlines()
    assert markdown[0].split() == ["|", "category", *(x for name in DEFAULT for x in ("|", name)), "|"]
    assert f"{results['image_AUROC/b']:.4f}" in markdown[3]
    assert "- seed: 7" in markdown
    shown = capsys.readouterr().out
    assert "mean" in shown
    assert f"{100 * results['image_AUROC']:.1f}" in shown
    assert "in percent" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_the_terminal(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    run(PerCategoryEvaluator(), [make_batch(["a_rather_long_name", "b"] * 6, [0, 0, 1, 1] * 3)], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["category"])
    assert lines[head - 1].split() == ["image"] * 3 + ["found"] * 2 + ["pixel"] * 4 + ["image", "pixel"]
    assert " ".join(lines[head].split()[1:]) == "AUROC AP F1Max at 2% at 5% AUROC AP F1Max AUPRO F1 F1"
    (row,) = (line for line in lines if line.split()[:1] == ["b"] and "." in line)
    assert len(row.split()) == 12, "nothing is cut off"


def test_metrics_that_are_no_fractions_are_not_in_percent():
    assert for_people([0.5, None, float("nan"), 1.0]) == ["50.0", "", "", "100.0"]
    assert for_people([0.5, 12.0]) == ["0.5000", "12.0000"]


def test_earlier_files_stay(tmp_path):
    (tmp_path / "metrics.csv").write_text("mine")
    (tmp_path / "metrics-1.md").write_text("mine too")
    for _ in range(2):
        run(PerCategoryEvaluator(), mixed(), tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "mine"
    assert (tmp_path / "metrics-1.md").read_text() == "mine too"
    assert sorted(path.name for path in tmp_path.glob("*-[23].*")) == [
        *("metrics-2.csv", "metrics-2.json", "metrics-2.md", "metrics-3.csv", "metrics-3.json", "metrics-3.md"),
        *("predictions-2.csv", "predictions-3.csv"),
    ]


def test_names_with_markup(tmp_path, capsys):
    run(PerCategoryEvaluator(), [make_batch(["[red]", "a|b"] * 4, [0, 0, 1, 1] * 2)], tmp_path)
    assert "[red]" in capsys.readouterr().out
    assert "| a\\|b " in (tmp_path / "metrics.md").read_text()


def test_origin_of_thresholds(tmp_path):
    def described(learned_from, post_processor):
        model = SimpleNamespace(device="cpu", post_processor=post_processor)
        return describe_run(None, model, 1, learned_from)["thresholds"]

    assert described("test images (same_as_test)", PostProcessor()) == "test images (same_as_test)"
    assert described("", PostProcessor()) == "", "unknown"
    assert described(None, PostProcessor()) == "none", "nothing was validated"
    assert described("test images (same_as_test)", None) == "none"
    idle = PostProcessor(enable_normalization=False, enable_thresholding=False)
    assert described("test images (same_as_test)", idle) == "none"
    assert described("x", PostProcessor(enable_normalization=False)) == "x"


def test_what_another_process_has_written_meanwhile_stays(tmp_path):
    """Both tests of the same run have their files, of one number each."""
    mine, theirs = RunFiles(tmp_path), RunFiles(tmp_path)
    tables = [pd.DataFrame({"path": [name]}) for name in ("mine", "theirs")]
    assert theirs.write_predictions(tables[1]).name == "predictions.csv"
    assert mine.write_predictions(tables[0]).name == "predictions-1.csv"
    mine.write_curves({"a": b"picture"})
    assert pd.read_csv(tmp_path / "predictions.csv").path.tolist() == ["theirs"]
    assert pd.read_csv(tmp_path / "predictions-1.csv").path.tolist() == ["mine"]
    assert [path.name for path in tmp_path.glob("curves*")] == ["curves-1"]
    (tmp_path / "metrics-1.csv").write_text("theirs")
    with pytest.raises(ExistingFileError, match=r"metrics-1\.csv has been written by another process"):
        mine._write({".csv": "mine"}, "metrics")
